"""Renders a report as a page and as Markdown. Both use templates that escape every value."""

import base64
import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from layer_surgeon._charts import DARK, LIGHT, chart_config, css_variables, glyph
from layer_surgeon._format import format_amount, format_seconds
from layer_surgeon._text import printable
from layer_surgeon._version import __version__
from layer_surgeon._yaml import dump_yaml
from layer_surgeon.report import cells
from layer_surgeon.report import words as say
from layer_surgeon.report.load import StudyReport
from layer_surgeon.report.series import layer_sweeps, learning_curves, place_of, shift_matrices
from layer_surgeon.study.tables import Table
from layer_surgeon.study.verdict import say_equivalence

if TYPE_CHECKING:
    from layer_surgeon.report.figure_style import Panel
    from layer_surgeon.report.figures import Figures

# Up to this many test sets, all of them are unfolded on the page; otherwise, only the first.
_OPEN = 3
# The page should stay below 2 MB, and Vega alone takes 0.9 MB.
_STATIC_BYTES = 500_000
_KINDS = {"compare": "Comparison", "sweep": "Layer sweep", "select": "Layer selection"}
_TAGS = {"better": "up", "worse": "down", "failed": "down"}
# Characters to escape. Others only have a meaning at the start of a line, where user text never is.
_MARKED = re.compile(r"([\\`*_{}\[\]#~])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "$": "&#36;"}


def escape_markdown(text: object) -> str:
    """Escape text from users for a line or a table cell in Markdown."""
    line = printable(" ".join(str(text).split()), keep="")
    return "".join(_ENTITIES.get(char, char) for char in _MARKED.sub(r"\\\1", line))


def code_block(text: str) -> str:
    """Return a Markdown code block, which can contain any text."""
    text = printable(text)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}\n{text}\n{fence}"


def markdown(report: StudyReport, pictures: Mapping[str, str]) -> str:
    """Return the content of the Markdown file.

    Args:
        report: The content of the report.
        pictures: Path relative to the file -> title, for the pictures that are written next to it.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    def finalize(value: object) -> Markup:
        return value if isinstance(value, Markup) else Markup(escape_markdown(value))  # escaped here

    # With autoescape, macros return Markup, which is not escaped a second time.
    environment = Environment(autoescape=True, finalize=finalize, keep_trailing_newline=True)
    text = environment.from_string(_resource("templates", "report.md.j2")).render(
        **_shared(report),
        pictures=pictures,
        code=lambda text: Markup(code_block(text)),  # needs no escaping
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def html(report: StudyReport) -> str:
    """Return the page: a single file that loads no other files."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from layer_surgeon.report.figures import Figures

    figures = Figures(report)
    script = _bundle() + _resource("assets", "report.js")
    # The policy only allows the script with this hash. Even unescaped user text could not run as a script.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{css_variables(DARK)}}}}}"
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    shared = _shared(report)
    context = {
        **shared,
        **_figures(report, figures, shared),
        "policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
        f"script-src 'sha256-{digest}'",
        "style": Markup(f":root{{{css_variables(LIGHT)}}}{dark}{_resource('assets', 'report.css')}"),
        "script": Markup(script),
        "themes": _json({"light": chart_config(LIGHT), "dark": chart_config(DARK)}),
        "spec": lambda panel: _json(panel.spec),
        "svg": _StaticCharts().draw,
        "kind": _KINDS[report.kind],
        "metric": say.first_upper(report.summary.metric.replace("_", " ")),
        "margin": say_equivalence(report.summary.equivalence, is_share=report.summary.is_share),
        "headline_facts": _headline_facts(report),
        "plan": dump_yaml(report.plan.as_dict()),
        "looks": {name: glyph(figures.style.number_of(name)) for name in report.summary.arms},
        "tags": {**dict.fromkeys(("not significant", "equivalent", "not run yet"), ""), **_TAGS},
        "version": __version__,
    }
    names = _section_names(context)
    return environment.from_string(_resource("templates", "report.html.j2")).render(**context, sections=names)


def _shared(report: StudyReport) -> dict[str, Any]:
    """Return the content that both templates share."""
    summary = report.summary
    facts = (
        cells.facts_table("The study", ("fact", "value"), cells.study_facts(report)),
        cells.facts_table("Settings that all trainings share", ("setting", "value"), report.settings),
        cells.facts_table("Versions", ("package", "version"), report.versions),
    )
    return {
        "report": report,
        "summary": summary,
        "selection": report.selection,
        "selection_table": cells.selection_table(report),
        "results": [_result(report, table) for table in summary.tables],
        "sweeps": [
            {"sweep": sweep, "place": place_of(sweep.table), "table": cells.layers_table(sweep, summary)}
            for sweep in layer_sweeps(summary, report.plan)
        ],
        "shifts": [cells.shift_table(shift, summary) for shift in shift_matrices(summary, report.plan)],
        "learning": cells.learning_table(learning_curves(report.plan, report.results), summary),
        "open": cells.open_table(report),
        "arms": cells.arms_table(summary),
        "facts": [table for table in facts if table.rows],
    }


def _result(report: StudyReport, table: Table) -> dict[str, Any]:
    summary = report.summary
    best = summary.best(table.rows)
    gist = f"{table.examples:,} test examples"
    if best is not None:
        arm = next(row.arm for row in table.rows if row.mean == best)
        gist = f"Best: {arm} {say.say_score(best, summary)}; {gist}"
    if table.comparisons:
        count = sum(comparison.significant for comparison in table.comparisons)
        gist += f"; {count} of {len(table.comparisons)} differences significant"
    return {
        "table": table,
        "place": place_of(table),
        "gist": gist,
        "is_open": len(summary.tables) <= _OPEN or table is summary.tables[0],
        "scores": cells.scores_table(table, summary),
        "differences": cells.differences_table(table, summary),
    }


def _figures(report: StudyReport, figures: "Figures", shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content that only the page has."""
    from layer_surgeon.report.curve_figures import learning_figures, share_figures

    varied = {sweep.varied for sweep in figures.sweeps}
    return {
        "results": [
            {
                **part,
                "scores_figure": figures.scores(part["table"]),
                "differences_figure": figures.differences(part["table"]) if part["table"].comparisons else None,
                # Not for sweeps: the layers of one donor all cost the same.
                "costs_figure": figures.costs(part["table"])
                if part["table"].comparisons and report.kind == "compare"
                else None,
            }
            for part in shared["results"]
        ],
        "sweeps": [{**part, "figure": figures.sweep(part["sweep"])} for part in shared["sweeps"]],
        "which": f"Which {varied.pop() if len(varied) == 1 else 'layer and site'}",
        "shift_figures": figures.domain_shift(),
        "share_figures": share_figures(figures.style),
        "learning_figures": learning_figures(figures.style, figures.curves),
    }


def _section_names(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = [
        ("chosen", "The choice", context["selection"]),
        ("layers", context["which"], context["sweeps"]),
        ("shift", "Domain shift", context["shift_figures"]),
        ("results", "Results", context["results"]),
        ("shares", "With less data", context["share_figures"]),
        ("learning", "Learning", context["learning_figures"]),
        ("arms", "The arms", True),
        ("open", "Unfinished trainings", context["open"]),
        ("made", "How the study was made", True),
    ]
    return [(name, title) for name, title, shown in names if shown]


def _headline_facts(report: StudyReport) -> list[tuple[str, str, str]]:
    summary, seeds = report.summary, report.plan.seeds
    hosts = list(dict.fromkeys(arm.host for arm in summary.arms.values()))
    donors = list(dict.fromkeys(arm.donor for arm in summary.arms.values() if arm.donor))
    direction = "higher is better" if summary.higher_is_better else "lower is better"
    seeds_text = ", ".join(map(str, seeds))
    done_text = f"{len(report.results):,} of {summary.cells.planned:,}"
    return [
        ("Judged by", summary.metric.replace("_", " "), f"{direction}; significant below {summary.alpha:g}"),
        ("Trainings", done_text, f"{format_amount(len(summary.arms), 'arm')}, {format_amount(len(seeds), 'seed')}"),
        ("Data", *_few(list(dict.fromkeys(table.data for table in summary.tables)))),
        ("Host" if len(hosts) == 1 else "Hosts", *_few(hosts)),
        ("Donor layer" if len(donors) == 1 else "Donor layers", *_few(donors)),
        ("Seeds", *((seeds_text, "") if len(seeds) <= 3 else (f"{len(seeds)} seeds", seeds_text))),
        ("Training time", format_seconds(report.training_seconds), "all trainings together"),
        ("Machine", *_few(report.machines)),
        ("Last training", (report.finished or "").replace("T", " ")[:16], "UTC"),
    ]


def _few(names: Sequence[str]) -> tuple[str, str]:
    """Return a fact as (value, note): one or two names, or their number with a list."""
    if len(names) <= 2:
        return ", ".join(names), ""
    names_text = ", ".join(names)
    return str(len(names)), names_text if len(names_text) < 90 else f"{names[0]} … {names[-1]}"


class _StaticCharts:
    """Charts as SVG in the light theme, for readers without scripts. On long pages, only the first ones are drawn."""

    def __init__(self) -> None:
        self._remaining_bytes = _STATIC_BYTES

    def draw(self, panel: "Panel") -> Any:
        """Return a chart, or a sentence if the limit for charts is reached."""
        import vl_convert
        from markupsafe import Markup

        if self._remaining_bytes <= 0:
            return "This chart needs scripts. Its numbers are in the tables."
        config = chart_config(LIGHT, background="white") | {"font": "sans-serif"}
        svg: str = vl_convert.vegalite_to_svg(panel.spec, config=config)
        self._remaining_bytes -= len(svg.encode())
        return Markup(svg)  # vl-convert escapes text


def _json(value: object) -> Any:
    """Return JSON that is safe inside a script element."""
    from markupsafe import Markup

    text = json.dumps(_only_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # has no more characters with a meaning in HTML


def _only_finite(value: object) -> object:
    """Return JSON content with None for infinity and NaN, which JSON doesn't have: a perplexity can be infinite."""
    if isinstance(value, Mapping):
        return {name: _only_finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_only_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@functools.cache
def _bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub is wrong
    # A closing tag in the script would end its element.
    return bundle.replace("</script", "<\\/script") + "\n"


def _resource(folder: str, name: str) -> str:
    return (resources.files("layer_surgeon.report") / folder / name).read_text(encoding="utf-8")
