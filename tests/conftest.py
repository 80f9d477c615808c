"""For all tests: less work for the garbage collector, and no charts of runs where no test is about them."""

import gc
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

# Importing transformers and collecting 5,000 tests makes over a million objects, which live until the end. Every full
# collection visits each of them, and each training does one: that took 15 % of the processor time of all tests.
gc.disable()

# One white pixel.
_BLANK = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154"
    "789c63f80f0001010100b138f6140000000049454e44ae426082"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests come first, so that no process is left alone with one at the end."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


def pytest_collection_finish() -> None:
    """From here on, collect only what the tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _blank_charts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Rendering its two charts takes a fifth of the time of a tiny training. Modules marked `charts` render them."""
    names = ("layer_surgeon.finetune.report", "layer_surgeon.finetune.confusion")
    modules = [sys.modules[name] for name in names if name in sys.modules]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            if request.node.get_closest_marker("charts") is None:
                patch.setattr(module, "draw_png", _draw_blank)
        yield


def _draw_blank(spec: Any) -> bytes:
    json.dumps(spec, allow_nan=False)
    return _BLANK
