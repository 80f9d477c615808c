"""A report as text: the page, and the Markdown. Both come from templates that escape every value."""

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from layer_surgeon._charts import DARK, LIGHT, chart_config, css_variables, glyph
from layer_surgeon._version import __version__
from layer_surgeon.report import cells
from layer_surgeon.report import words as say
from layer_surgeon.report.load import StudyReport
from layer_surgeon.report.series import layer_sweeps, learning_curves, place_of, shift_matrices
from layer_surgeon.study.tables import Table

if TYPE_CHECKING:
    from layer_surgeon.report.figure_style import Panel
    from layer_surgeon.report.figures import Figures

# If there are at most so many test sets, all are unfolded on the page; else the first.
_OPEN = 3
# The page is to stay below 2 MB, of which Vega takes 0.9.
_STATIC_BYTES = 500_000
_KINDS = {"compare": "Comparison", "sweep": "Layer sweep", "select": "Layer selection"}
_TAGS = {"better": "up", "worse": "down", "failed": "down"}
# These are shown as they are; other signs mean something only at the beginning of a line, where no name stands.
_MARKED = re.compile(r"([\\`*_{}\[\]#~])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "$": "&#36;"}


def escape_markdown(text: object) -> str:
    """Text that people wrote, for a line or a table's cell of Markdown."""
    line = " ".join(str(text).split())
    return "".join(_ENTITIES.get(char, char) for char in _MARKED.sub(r"\\\1", line))


def code_block(text: str) -> str:
    """A block of Markdown code that holds any text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}\n{text}\n{fence}"


def markdown(report: StudyReport, pictures: Mapping[str, str]) -> str:
    """The Markdown file.

    Args:
        report: What it shows.
        pictures: Path, as seen from the file -> what it shows; those that are written next to it.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    def finalize(value: object) -> Markup:
        return value if isinstance(value, Markup) else Markup(escape_markdown(value))  # escaped here

    # With autoescape on, macros give Markup, which is not escaped twice.
    environment = Environment(autoescape=True, finalize=finalize, keep_trailing_newline=True)
    text = environment.from_string(_resource("templates", "report.md.j2")).render(
        **_shared(report),
        pictures=pictures,
        code=lambda text: Markup(code_block(text)),  # as it is
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def html(report: StudyReport) -> str:
    """The page: one file that loads nothing."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from layer_surgeon.report.figures import Figures

    figures = Figures(report)
    script = (
        _resource("assets", "report.js") if not report.summary.arms else _bundle() + _resource("assets", "report.js")
    )
    # The script is named by its hash: nothing that a name of an arm could bring in would run, were it not escaped.
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
        "headline_facts": _headline_facts(report),
        "plan": yaml.safe_dump(report.plan.as_dict(), sort_keys=False, allow_unicode=True),
        "looks": {name: glyph(figures.style.number_of(name)) for name in report.summary.arms},
        "tags": {**dict.fromkeys(("not significant", "not run yet"), ""), **_TAGS},
        "version": __version__,
    }
    names = _section_names(context)
    return environment.from_string(_resource("templates", "report.html.j2")).render(**context, sections=names)


def _shared(report: StudyReport) -> dict[str, Any]:
    """What both templates show."""
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
    best = next(row for row in table.rows if row.mean == summary.best(table.rows))
    gist = f"Best: {best.arm} {say.say_score(best.mean, summary)}; {table.examples:,} test examples"
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
    """What the page alone shows."""
    from layer_surgeon.report.curve_figures import learning_figures, share_figures

    varied = {sweep.varied for sweep in figures.sweeps}
    return {
        "results": [
            {
                **part,
                "scores_figure": figures.scores(part["table"]),
                "differences_figure": figures.differences(part["table"]) if part["table"].comparisons else None,
                # The layers of one donor cost the same.
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
        ("shift", "Trained here, tested there", context["shift_figures"]),
        ("results", "Results", context["results"]),
        ("shares", "With less data", context["share_figures"]),
        ("learning", "Learning", context["learning_figures"]),
        ("arms", "The arms", True),
        ("open", "Trainings that are not done", context["open"]),
        ("made", "How it was made", True),
    ]
    return [(name, title) for name, title, shown in names if shown]


def _headline_facts(report: StudyReport) -> list[tuple[str, str, str]]:
    summary, seeds = report.summary, report.plan.seeds
    hosts = list(dict.fromkeys(arm.host for arm in summary.arms.values()))
    donors = list(dict.fromkeys(arm.donor for arm in summary.arms.values() if arm.donor))
    higher = "higher is better" if summary.higher_is_better else "lower is better"
    listed = ", ".join(map(str, seeds))
    planned = f"{len(report.results):,} of {summary.cells.planned:,}"
    return [
        ("Judged by", summary.metric.replace("_", " "), f"{higher}; significant below {summary.alpha:g}"),
        ("Trainings", planned, f"{len(summary.arms)} arms, {len(seeds)} seeds"),
        ("Data", *_few(list(dict.fromkeys(table.data for table in summary.tables)))),
        ("Host" if len(hosts) == 1 else "Hosts", *_few(hosts)),
        ("Donor layer" if len(donors) == 1 else "Donor layers", *_few(donors)),
        ("Seeds", *((listed, "") if len(seeds) <= 3 else (f"{len(seeds)} seeds", listed))),
        ("Training time", say.say_time(report.training_seconds), "all trainings together"),
        ("Machine", *_few(report.machines)),
        ("Last training", (report.finished or "").replace("T", " ")[:16], "UTC"),
    ]


def _few(names: Sequence[str]) -> tuple[str, str]:
    """A fact with one value, or with several."""
    if len(names) <= 2:
        return ", ".join(names), ""
    listed = ", ".join(names)
    return str(len(names)), listed if len(listed) < 90 else f"{names[0]} … {names[-1]}"


class _StaticCharts:
    """Charts as SVG, in the light theme, for readers without scripts; a page of many charts has the first of them."""

    def __init__(self) -> None:
        self._room = _STATIC_BYTES

    def draw(self, panel: "Panel") -> Any:
        """A chart, or a sentence if there is no more room for charts."""
        import vl_convert
        from markupsafe import Markup

        if self._room <= 0:
            return "This chart needs scripts. Its numbers are in the tables."
        config = chart_config(LIGHT, background="white") | {"font": "sans-serif"}
        svg: str = vl_convert.vegalite_to_svg(panel.spec, config=config)
        self._room -= len(svg.encode())
        return Markup(svg)  # vl-convert escapes text


def _json(value: object) -> Any:
    """JSON that can stand inside a script element."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # nothing is left in it that HTML gives a meaning


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed, as one script."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub is wrong
    # It would end the element that it stands in.
    return bundle.replace("</script", "<\\/script") + "\n"


def _resource(folder: str, name: str) -> str:
    return (resources.files("layer_surgeon.report") / folder / name).read_text(encoding="utf-8")
