"""Common parts of all charts: colours and shapes in a light and a dark theme, and rendering to PNG.

All colours are defined here. Reports get them as CSS variables, and charts get them as a Vega-Lite config, so one chart
definition works in both themes. The eight colours of arms are distinguishable with any form of colour blindness;
neighbouring arms also differ in shape.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Theme = Mapping[str, str]
# c0 ... c7: arms, the reference first. h0 ... h8: heat map, from worse to better. t0 ... t8: text on h0 ... h8.
LIGHT: Theme = {
    "page": "#fbfbfa",
    "card": "#ffffff",
    "ink": "#1c2530",
    "soft": "#55606c",
    "rule": "#e4e7ea",
    "strong-rule": "#c9cfd5",
    "chip": "#f1f3f5",
    "link": "#0b5cad",
    "warn": "#8a4b00",
    "warn-back": "#fdf3e3",
    "warn-rule": "#e5b568",
    "c0": "#5b6672",
    "c1": "#c8500a",
    "c2": "#1f6fb5",
    "c3": "#05996b",
    "c4": "#9a80cf",
    "c5": "#5a3c00",
    "c6": "#8f0a4c",
    "c7": "#2f2c7d",
    "h0": "#95520a",
    "h1": "#d99a52",
    "h2": "#f0cd9f",
    "h3": "#f8e9d5",
    "h4": "#eef0f2",
    "h5": "#dbe8f5",
    "h6": "#aed0ee",
    "h7": "#6fadde",
    "h8": "#1b5c9c",
    "t0": "#ffffff",
    "t1": "#1c1408",
    "t2": "#1c1408",
    "t3": "#1c1408",
    "t4": "#1c2530",
    "t5": "#0c1c2c",
    "t6": "#0c1c2c",
    "t7": "#0c1c2c",
    "t8": "#ffffff",
}
DARK: Theme = {
    "page": "#12161b",
    "card": "#181d23",
    "ink": "#e7eaee",
    "soft": "#a3adb8",
    "rule": "#2a3138",
    "strong-rule": "#424b55",
    "chip": "#222930",
    "link": "#7db8f0",
    "warn": "#f2c27b",
    "warn-back": "#2a2216",
    "warn-rule": "#7d5c22",
    "c0": "#9aa6b2",
    "c1": "#f58a4b",
    "c2": "#63aef0",
    "c3": "#1f9d76",
    "c4": "#e9d8fb",
    "c5": "#9a7400",
    "c6": "#bb58b2",
    "c7": "#a9c3ee",
    "h0": "#e8a55c",
    "h1": "#9c6024",
    "h2": "#6b4824",
    "h3": "#3f3224",
    "h4": "#272e36",
    "h5": "#22364a",
    "h6": "#254d73",
    "h7": "#2d6aa3",
    "h8": "#7fbdf2",
    "t0": "#1a1005",
    "t1": "#ffffff",
    "t2": "#ffffff",
    "t3": "#f3ece2",
    "t4": "#e7eaee",
    "t5": "#e4eef8",
    "t6": "#ffffff",
    "t7": "#ffffff",
    "t8": "#06131f",
}
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
_GLYPHS = "●■▲◆▼✚▶"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', Arial, sans-serif"


def css_variables(theme: Theme) -> str:
    """Convert a theme to CSS variables."""
    return "".join(f"--{name}:{color};" for name, color in theme.items())


def glyph(index: int) -> tuple[str, int]:
    """Return the shape of an arm as a character, and the number of its colour, as drawn in charts."""
    return _GLYPHS[index % len(_GLYPHS)], index % 8


def heat_steps() -> int:
    """Return the number of colours of a heat map."""
    return sum(name.startswith("h") for name in LIGHT)


def chart_config(theme: Theme, *, background: str | None = None) -> dict[str, Any]:
    """Convert a theme to a Vega-Lite config.

    The ranges `category` and `symbol` are for arms; `diverging` and `ordinal` are for heat maps around zero, and `ramp`
    for heat maps of quantities.
    """
    axis = {
        "domain": False,
        "ticks": False,
        "gridColor": theme["rule"],
        "labelColor": theme["soft"],
        "titleColor": theme["soft"],
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelPadding": 6,
        "titlePadding": 10,
        "labelLimit": 220,
    }
    text = {"color": theme["ink"], "fontSize": 12.5}
    return {
        "font": _FONT,
        "aria": False,  # The page that shows the chart has its own text alternative.
        "background": background,
        "padding": 4,
        "view": {"stroke": None},
        "axis": axis,
        "text": text,
        "style": {"cover": {"color": background or theme["page"]}},
        "legend": {
            "labelColor": theme["ink"],
            "labelFontSize": 12,
            "labelLimit": 240,
            "symbolSize": 70,
            "orient": "bottom",
            "columns": 1,
            "title": None,
            "symbolStrokeWidth": 2,
            "symbolOpacity": 1,
        },
        "title": {
            "color": theme["ink"],
            "subtitleColor": theme["soft"],
            "anchor": "start",
            "fontSize": 15,
            "offset": 14,
            "subtitleFontSize": 12,
            "subtitlePadding": 5,
            "fontWeight": 600,
        },
        "header": {"labelColor": theme["ink"]},
        "rule": {"color": theme["soft"]},
        "point": {"strokeWidth": 2},
        "range": {
            "category": _color_series(theme, "c"),
            "diverging": _color_series(theme, "h"),
            "ordinal": _color_series(theme, "t"),
            "ramp": [theme[name] for name in ("h4", "h5", "h6", "h7", "h8")],
            "symbol": list(_SHAPES),
        },
    }


def _color_series(theme: Theme, letter: str) -> Sequence[str]:
    return [color for name, color in theme.items() if name[0] == letter and name[1:].isdigit()]


def draw_png(spec: Mapping[str, Any]) -> bytes:
    """Render a Vega-Lite chart as PNG on a white background."""
    import vl_convert

    png: bytes = vl_convert.vegalite_to_png(_without_theme(spec), scale=2, config=_file_config())
    return png


def draw_svg(spec: Mapping[str, Any]) -> str:
    """Render a Vega-Lite chart as SVG on a white background. It has no scripts, and all text is escaped."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(_without_theme(spec), config=_file_config())
    return svg


def _without_theme(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A chart without the theme that Altair adds, which would come before ours."""
    return {name: value for name, value in spec.items() if name != "config"}


def _file_config() -> dict[str, Any]:
    return chart_config(LIGHT, background="white") | {"padding": 16}
