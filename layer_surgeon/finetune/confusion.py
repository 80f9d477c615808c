"""Draw a confusion matrix."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layer_surgeon._charts import draw_png
from layer_surgeon._io import write_bytes

_WHITE_TO_BLUE = ("#ffffff", "#cfe0f1", "#2563a8", "#123a66")
# A good model confuses only a few percent, which would look white on a linear scale.
_STOPS = (0.0, 1 / 9, 4 / 9, 1.0)
_LIGHT_TEXT, _DARK_TEXT, _GRAY_TEXT = "#ffffff", "#33414f", "#b8c4d0"
# Up to this many classes, shares and counts fit into the cells, and names fit next to them.
_WITH_SHARES, _WITH_COUNTS, _WITH_NAMES = 6, 20, 60
_LONGEST_NAME = 24


def draw_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], title: str, path: Path) -> None:
    """Draw a confusion matrix: true classes in rows, predicted classes in columns, coloured by the share of the row.

    Args:
        confusion: Counts [true class, predicted class].
        names: Class names, in the same order.
        title: Title of the chart.
        path: The PNG file to write.
    """
    import altair as alt

    few, side = len(names) <= _WITH_SHARES, min(max(58.0 * len(names), 200), 640)
    size = 13 if few else 11 if len(names) <= 12 else 9
    axes = [_name_axis(names, across=across) for across in (True, False)]
    base = alt.Chart(alt.Data(values=_cells(confusion, few=few))).encode(  # type: ignore[no-untyped-call]
        x=alt.X("column:O", title="predicted class", axis=axes[0]), y=alt.Y("row:O", title="true class", axis=axes[1])
    )
    scale = alt.Scale(domain=list(_STOPS), range=list(_WHITE_TO_BLUE))
    legend = alt.Legend(title="share of the true class", orient="right", format=".0%", values=[0, 0.05, 0.25, 0.5, 1])
    parts = [
        base.mark_rect(stroke="#e6eaee").encode(color=alt.Color("share:Q", scale=scale, legend=legend)),
        *(
            base.mark_text(fontSize=size, dy=dy).encode(text=f"{field}:N", fill=alt.Fill("ink:N", scale=None))
            for field, dy in (("count", -8 if few else 0), ("share_text", 8))
            if len(names) <= (_WITH_SHARES if field == "share_text" else _WITH_COUNTS)
        ),
    ]
    chart = alt.layer(*parts).properties(width=side, height=side, title=alt.Title(title))
    write_bytes(path, draw_png(chart.to_dict(validate=False)))


def _cells(confusion: Sequence[Sequence[int]], *, few: bool) -> list[dict[str, Any]]:
    """Make one record per cell."""
    cells = []
    for row, counts in enumerate(confusion):
        total = max(sum(counts), 1)
        for column, count in enumerate(counts):
            share = count / total
            ink = _LIGHT_TEXT if share > 0.3 else _DARK_TEXT if count else _GRAY_TEXT
            cell = {"row": row, "column": column, "share": share, "count": f"{count:,}", "ink": ink}
            cells.append({**cell, "share_text": f"{share:.1%}"} if few else cell)
    return cells


def _name_axis(names: Sequence[str], *, across: bool) -> Any:
    """Make a class axis. Its values are numbers, because two classes may have the same truncated name."""
    import altair as alt

    if len(names) > _WITH_NAMES:
        return alt.Axis(labels=False)
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    # About seven letters fit below a cell; more fit below large cells.
    turned = max(map(len, shown), default=0) > (14 if len(shown) <= 3 else 7) or len(shown) > 12
    size = 12 if len(shown) <= 12 else 10 if len(shown) <= 30 else 8
    label = f"{json.dumps(shown)}[datum.value]"
    return alt.Axis(labelExpr=label, labelAngle=-90 if across and turned else 0, labelFontSize=size, labelOverlap=False)
