"""The picture of a confusion matrix: which classes are taken for which."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from layer_surgeon._io import new_file

_WHITE_TO_BLUE = LinearSegmentedColormap.from_list("white to blue", ["#ffffff", "#cfe0f1", "#2563a8", "#123a66"])
_DARK, _GRAY, _LINES = "#33414f", "#b8c4d0", "#e6eaee"
# With more classes than these, shares, counts and names no longer fit into cells of this size, or beside them.
_WITH_SHARES, _WITH_COUNTS, _WITH_NAMES = 6, 20, 60
_LONGEST_NAME = 24


def draw_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], title: str, path: Path) -> None:
    """How often each true class (rows) was taken for each class (columns); the colour is the share of the row.

    Args:
        confusion: Counts [true class, predicted class].
        names: Class names, in the same order.
        title: What was measured.
        path: Where the PNG is written.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.62 * len(names), 2.8), 9.0)
    figure = Figure(figsize=(side + 2.6, side + 1.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    # By the square root: what a good model confuses are a few percent, which would else be white.
    image = axes.imshow(shares, cmap=_WHITE_TO_BLUE, norm=PowerNorm(0.5, vmin=0, vmax=1))
    if len(names) <= _WITH_COUNTS:
        _write_counts(axes, counts, shares)
    _name_classes(axes, names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.spines[:].set_color(_LINES)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, ticks=[0, 0.05, 0.25, 0.5, 1], format="{x:.0%}")
    bar.ax.tick_params(labelsize=8)
    bar.set_label("share of the true class", fontsize=8.5)
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=10.5, x=0.02, ha="left", parse_math=False)
    # Cells are squares, which the layout does not know of: without this, names beside few of them are cut off.
    with new_file(path) as file:
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.12)


def _write_counts(axes: Any, counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> None:
    """Counts, and below them, where the cells are large enough, their shares of the rows."""
    few = len(counts) <= _WITH_SHARES
    size = 10.5 if few else 8.5 if len(counts) <= 12 else 7
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        ink = "white" if share > 0.3 else _DARK if count else _GRAY
        text = f"{count:,}\n{share:.1%}" if few else f"{count:,}"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)


def _name_classes(axes: Any, names: Sequence[str]) -> None:
    """Names along both axes, and lines between the cells."""
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    named = range(len(shown)) if len(shown) <= _WITH_NAMES else range(0)
    size = 9.5 if len(shown) <= 12 else 8 if len(shown) <= 30 else 6
    # Names, not formulas: matplotlib would set what stands between two dollars, and fail at most of it.
    axes.set_xticks(named, shown[: len(named)], fontsize=size, parse_math=False)
    axes.set_yticks(named, shown[: len(named)], fontsize=size, parse_math=False)
    # Below a cell there is room for about seven letters, below the few and large ones for more.
    if max(map(len, shown), default=0) > (14 if len(shown) <= 3 else 7) or len(shown) > 12:
        axes.tick_params(axis="x", rotation=90 if len(shown) > 12 else 30)
    axes.tick_params(which="both", length=0)
    if len(shown) <= _WITH_NAMES:
        between = np.arange(0.5, len(shown) - 1)
        axes.set_xticks(between, minor=True)
        axes.set_yticks(between, minor=True)
        axes.grid(which="minor", color=_LINES, linewidth=0.8)
