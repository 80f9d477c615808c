"""A heat map with one column per layer, for the differences of two checkpoints and for the measures of layers."""

import html
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt

from layer_surgeon._charts import draw_png, draw_svg
from layer_surgeon._io import write_bytes
from layer_surgeon._text import printable
from layer_surgeon.errors import ConfigError, WorkspaceError
from layer_surgeon.report.encodings import LayeredChart, inline_data

FILE_TYPES = (".html", ".svg", ".png")

_TILE_WIDTH, _TILE_HEIGHT = 22, 24
# Browsers may have a wider font than the one that the chart is laid out with. The names would be cut.
_PADDING = {"left": 28, "top": 5, "right": 5, "bottom": 5}
# Long names lose their middle: the beginning and the end tell them apart more often.
_SHORT_LABEL = "length(datum.label) > 60 ? slice(datum.label, 0, 29) + '…' + slice(datum.label, -30) : datum.label"


@dataclass(frozen=True, kw_only=True)
class LayerTile:
    """A field of the heat map.

    Attributes:
        row: Name of the row.
        column: Name of the column.
        value: What the colour shows. None leaves the field empty.
        sign: A character in the field, for what has no value.
    """

    row: str
    column: str
    value: float | None
    sign: str = ""


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be written, before something is computed for hours.

    Raises:
        ConfigError: Its ending is not in `FILE_TYPES`.
        WorkspaceError: It is a folder, or its folder can't be written.
    """
    if path.suffix not in FILE_TYPES:
        raise ConfigError(f"{path} must end in {', '.join(FILE_TYPES[:-1])} or {FILE_TYPES[-1]}.")
    if path.is_dir():
        raise WorkspaceError(f"{path} is a folder. Choose another file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise WorkspaceError(f"{path} can't be written: {error.strerror or error}. Choose another folder.") from error


def layer_heat_map(
    tiles: Sequence[LayerTile], rows: Sequence[str], columns: Sequence[str], *, title: str, legend: str, log: bool
) -> LayeredChart:
    """Draw a heat map of a quantity.

    Args:
        tiles: The fields.
        rows: Names of the rows, from top to bottom.
        columns: Names of the columns, from left to right.
        title: Title of the chart.
        legend: What the colour shows.
        log: Whether the colour shows the logarithm. Zero is then drawn as an empty field.
    """
    records = [
        {
            "row": _one_line(tile.row),
            "column": tile.column,
            "value": tile.value,
            "sign": tile.sign,
            "filled": tile.value is not None and (tile.value > 0 or not log),
        }
        for tile in tiles
    ]
    base = alt.Chart().encode(
        x=alt.X(
            field="column",
            type="nominal",
            sort=list(columns),
            title="layer",
            axis=alt.Axis(orient="bottom", labelAngle=0, labelOverlap="greedy"),
        ),
        y=alt.Y(
            field="row",
            type="nominal",
            sort=list(map(_one_line, rows)),
            title=None,
            axis=alt.Axis(labelLimit=400, labelExpr=_SHORT_LABEL),
        ),
    )
    scale = alt.Scale(type="log" if log else "linear", range="ramp", zero=not log)
    color = alt.Color(
        field="value",
        type="quantitative",
        scale=scale,
        legend=alt.Legend(
            title=legend,
            orient="bottom",
            gradientLength=260,
            titleLimit=400,
            tickCount=4,
            format=".1~e" if log else "",
        ),
    )
    parts = [base.mark_rect(stroke="#e4e7ea", strokeWidth=1, fillOpacity=0, strokeOpacity=1)]
    if any(record["filled"] for record in records):
        parts.append(base.transform_filter("datum.filled").mark_rect(cornerRadius=2, stroke=None).encode(color=color))
    if any(record["sign"] for record in records):
        parts.append(base.mark_text(fontSize=12).encode(text=alt.Text(field="sign", type="nominal")))
    layers = alt.layer(*parts, data=inline_data(records))
    return layers.properties(
        width=max(_TILE_WIDTH * len(columns), 280),
        height=_TILE_HEIGHT * len(rows),
        title=_one_line(title),
        padding=_PADDING,
    )


def write_picture(chart: LayeredChart, path: Path, *, title: str) -> None:
    """Write a chart as `.html`, `.svg` or `.png`. The page has no scripts and loads nothing.

    Raises:
        ConfigError: The file name has another ending.
        WorkspaceError: The file can't be written.
    """
    check_picture(path)
    spec: dict[str, Any] = chart.to_dict(validate=False)
    if path.suffix == ".png":
        write_bytes(path, draw_png(spec))
        return
    picture = draw_svg(spec)
    if path.suffix == ".html":
        heading = html.escape(_one_line(title))
        picture = (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title></head>\n'
            f"<body>\n{picture}\n</body></html>\n"
        )
    write_bytes(path, picture.encode())


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()), keep="")
