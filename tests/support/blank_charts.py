"""Blank charts of runs: making and rendering its two charts takes a quarter of the time of a tiny training."""

import sys

import pytest

# One white pixel.
_BLANK = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154"
    "789c63f80f0001010100b138f6140000000049454e44ae426082"
)
# Where runs draw them.
MODULES = ("layer_surgeon.finetune.report",)


def draw_blank(patch: pytest.MonkeyPatch) -> None:
    """Draw one pixel instead of the charts of runs, in the modules that are imported already."""
    for name in MODULES:
        if name in sys.modules:
            patch.setattr(sys.modules[name], "draw_curve", lambda result, path: path.write_bytes(_BLANK))
            patch.setattr(
                sys.modules[name], "draw_confusion", lambda counts, names, title, path: path.write_bytes(_BLANK)
            )
