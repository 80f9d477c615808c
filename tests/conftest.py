"""For all tests: less work for the garbage collector, the disk and models without weights, and often blank charts."""

import gc
import os
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import Any

import pytest
from accelerate.utils import imports
from torch import Tensor
from torch.nn import init

from tests.support.blank_charts import draw_blank

# Importing transformers and collecting 6,000 tests makes over a million objects, which live until the end. Every full
# collection visits each of them, and each training does one: that took 15 % of the processor time of all tests.
gc.disable()

# The files of tests don't have to survive a power cut. Each of 10,000 calls would wait 2 ms for the disk.
os.fsync = lambda _: None

# transformers reads each tensor in a thread. For tiny models, that takes a third of the time of loading them.
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")

# In each step of a training, accelerate looks for packages that aren't there: 4 % of the time of tiny trainings.
imports._is_package_available = cache(imports._is_package_available)


def _only_where_there_are_values(initialize: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(initialize)
    def initialize_values(tensor: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        return tensor if tensor.is_meta else initialize(tensor, *arguments, **keywords)

    return initialize_values


# A donor's whole model is made on the meta device whenever one of its layers is loaded. There, initializing weights
# changes nothing, but torch takes a tenth of the time of loading to do so.
for _name in ("kaiming_uniform_", "normal_", "ones_", "trunc_normal_", "uniform_", "xavier_uniform_", "zeros_"):
    setattr(init, _name, _only_where_there_are_values(getattr(init, _name)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests come first, so that no process is left alone with one at the end."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


def pytest_collection_finish() -> None:
    """From here on, collect only what the tests make, and not after each 700 objects."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _frozen_imports() -> None:
    """What earlier test modules imported stays until the end too."""
    gc.collect(1)
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _blank_charts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Modules marked `charts` render the charts of runs, the others get blank ones."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("charts") is None:
            draw_blank(patch)
        yield
