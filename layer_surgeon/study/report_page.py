"""The HTML page of a report: one file, nothing loaded from elsewhere, readable without scripts."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from layer_surgeon._io import write_text
from layer_surgeon._version import __version__
from layer_surgeon._yaml import dump_yaml
from layer_surgeon.study.report_figures import (
    costs_plot,
    curves_plots,
    differences_plot,
    scores_plot,
    shares_plots,
    shift_plots,
    sweep_plot,
)
from layer_surgeon.study.report_html import (
    Column,
    Field,
    Pages,
    interval,
    number,
    table,
    words,
)
from layer_surgeon.study.report_text import say_count, say_time
from layer_surgeon.study.report_types import Difference, OpenCell, Row, StudyReport, Table
from layer_surgeon.study.verdict import say_p

# So many test sets all stand open on the page; of more, the first.
_OPEN = 3
_TAGS = {"better": "up", "worse": "down"}


def write_page(report: StudyReport, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        WorkspaceError: It can't be written.
    """
    write_text(path, make_page(report))


def make_page(report: StudyReport) -> str:
    """The page as text."""
    page = Pages(report)
    sections = [(name, title, content) for name, title, content in _sections(page) if content]
    links = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{escape(title)}</h2>{content}</section>\n'
        for name, title, content in sections
    )
    style, script = _asset("report.css"), _asset("report.js")
    # The script is named by its hash: nothing that a name of an arm could bring in would run, were it not escaped.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    policy += "; form-action 'none'; base-uri 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(report.title)}</title>\n<style>{style}</style></head>\n<body>\n{_header(page)}"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n{body}</main>\n'
        f"<footer>Made by layer_surgeon {escape(__version__)} from {escape(str(report.path))}. All numbers stand in "
        f"summary.json and cells/ there.</footer>\n<script>{script}</script>\n</body></html>\n"
    )


def _asset(name: str) -> str:
    return (resources.files("layer_surgeon.study") / "assets" / name).read_text(encoding="utf-8")


def _sections(page: Pages) -> list[tuple[str, str, str]]:
    report = page.report
    layers = "".join(
        (f"<h3>{escape(sweep.place)}</h3>" if len(report.sweeps) > 1 else "") + sweep_plot(page, sweep)
        for sweep in report.sweeps
    )
    varied = {sweep.varied for sweep in report.sweeps}
    return [
        ("chosen", "The choice", _selection(page)),
        ("layers", f"Which {varied.pop() if len(varied) == 1 else 'layer and site'}", layers),
        ("shift", "Trained here, tested there", shift_plots(page)),
        ("results", "Results", _results(page)),
        ("shares", "With less data", shares_plots(page)),
        ("learning", "Learning", curves_plots(page)),
        ("arms", "The arms", _arms(page)),
        ("open", "Trainings that are not done", _open(report)),
        ("made", "How it was made", _made(report)),
    ]


def _header(page: Pages) -> str:
    report = page.report
    kinds = {"compare": "Comparison", "sweep": "Layer sweep", "select": "Layer selection"}
    state = escape(report.state)
    if not report.is_finished:
        state = f'<p class="state open"><a href="#open">{state}</a></p>'
    else:
        state = f'<p class="state">{state}</p>'
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}{f'<small>{escape(more)}</small>' if more else ''}</dd></div>"
        for name, value, more in _facts(page)
    )
    return (
        f'<header><p class="over">{kinds[report.kind]} · {escape(report.task.replace("-", " "))}</p>'
        f'<h1>{escape(report.title)}</h1>\n<p class="verdict">{escape(report.verdict)}</p>{state}'
        f'<dl class="facts">{facts}</dl></header>\n'
    )


def _facts(page: Pages) -> list[tuple[str, str, str]]:
    report = page.report
    hosts = list(dict.fromkeys(arm.host for arm in report.arms))
    donors = list(dict.fromkeys(arm.donor for arm in report.arms if arm.donor))
    data = list(dict.fromkeys(table.data for table in report.tables))
    higher = "higher is better" if report.higher_is_better else "lower is better"
    seeds = ", ".join(map(str, report.seeds))
    found = [
        ("Judged by", page.metric, f"{higher}; significant below {report.alpha:g}"),
        ("Trainings", f"{report.done:,} of {report.planned:,}", f"{len(report.arms)} arms, {len(report.seeds)} seeds"),
        ("Data", *_few(data)),
        ("Host" if len(hosts) == 1 else "Hosts", *_few(hosts)),
        ("Donor layer" if len(donors) == 1 else "Donor layers", *_few(donors)),
        (
            "Seeds",
            seeds if len(report.seeds) <= 3 else f"{len(report.seeds)} seeds",
            seeds if len(report.seeds) > 3 else "",
        ),
        ("Training time", say_time(report.training_seconds), "all trainings together"),
        ("Machine", *_few(report.machines)),
        ("Last training", (report.finished or "").replace("T", " ")[:16], "UTC"),
    ]
    return [entry for entry in found if entry[1]]


def _few(names: Sequence[str]) -> tuple[str, str]:
    """A fact with one value, or with several."""
    if len(names) <= 2:
        return ", ".join(names), ""
    listed = ", ".join(names)
    return str(len(names)), listed if len(listed) < 90 else f"{names[0]} … {names[-1]}"


def _results(page: Pages) -> str:
    tables = page.report.tables
    if len(tables) == 1:
        place = f'<p class="note">{escape(_place(tables[0]))}.</p>'
        return place + _block(page, tables[0])
    blocks = []
    for index, each in enumerate(tables):
        shown = " open" if len(tables) <= _OPEN or index == 0 else ""
        blocks.append(
            f'<details class="place"{shown}><summary><b>{escape(each.place)}</b>'
            f"<small>{escape(_gist(page, each))}</small></summary>{_block(page, each)}</details>"
        )
    return "".join(blocks)


def _place(each: Table) -> str:
    return f"On {each.place}, {each.examples:,} test examples"


def _gist(page: Pages, each: Table) -> str:
    best = next(row for row in each.rows if row.best)
    told = sum(entry.significant for entry in each.comparisons)
    said = f"{best.arm} {page.score(best.mean)}; {each.examples:,} test examples"
    if each.comparisons:
        said += f"; {told} of {len(each.comparisons)} differences significant"
    return f"Best: {said}"


def _block(page: Pages, each: Table) -> str:
    parts = [f"<h3>{escape(page.metric.capitalize())} by arm</h3>", scores_plot(page, each), _scores_table(page, each)]
    if each.comparisons:
        parts += ["<h3>Differences</h3>", differences_plot(page, each), _differences_table(page, each)]
    # The layers of one donor cost the same.
    if costs := costs_plot(page, each) if each.comparisons and page.report.kind == "compare" else "":
        parts += ["<h3>Cost against gain</h3>", costs]
    return "".join(parts)


def _scores_table(page: Pages, each: Table) -> str:
    others = list(dict.fromkeys(name for row in each.rows for name in row.scores))
    others = [name for name in others if name != page.report.metric]
    names = ["95 % over seeds", "95 % over examples", "seeds", "trained", "training"]
    names += [name.replace("_", " ") for name in others]
    columns = [Column(name="arm"), Column(name=page.metric, number=True), Column(name="deviation", number=True)]
    columns += [Column(name=f"against {page.report.reference}"), *(Column(name=name, number=True) for name in names)]
    rows = [_score_fields(page, row, others) for row in each.rows]
    if not any(row.verdict for row in each.rows):
        columns, rows = [*columns[:3], *columns[4:]], [[*row[:3], *row[4:]] for row in rows]
    return table(columns, rows, f"{page.metric} by arm on {each.place}")


def _score_fields(page: Pages, row: Row, others: Sequence[str]) -> list[Field]:
    verdict = "" if row.verdict is None else f'<span class="tag {_TAGS.get(row.verdict, "")}">{row.verdict}</span>'
    by_seed = ", ".join(f"{seed}: {page.score(value)}" for seed, value in zip(row.seeds, row.by_seed, strict=True))
    low = [None if span is None else span[0] for span in (row.seed_interval, row.example_interval)]
    return [
        Field(html=page.arm(row.arm)),
        number(row.mean, page.score, "most" if row.best else ""),
        number(row.deviation, lambda value: page.gain(value).lstrip("+")),
        Field(html=verdict),
        Field(html=interval(row.seed_interval, page.score), value=low[0]),
        Field(html=interval(row.example_interval, page.score), value=low[1]),
        Field(html=f'<span title="{escape(by_seed)}">{len(row.seeds)}</span>', value=len(row.seeds)),
        number(row.trained, say_count),
        number(row.training_seconds, say_time),
        *(number(row.scores.get(name), lambda value: f"{value:.3f}") for name in others),
    ]


def _differences_table(page: Pages, each: Table) -> str:
    names = ["difference", "95 % interval", "p", "p (Holm)", "effect size", "p (t-test)", "p (permutation)", "seeds"]
    columns = [Column(name="in words", words=True), *(Column(name=name, number=True) for name in names)]
    rows = [_difference_fields(page, entry) for entry in each.comparisons]
    return table(columns, rows, f"Comparisons on {each.place}") + (
        '<p class="note">p is that of the test that decides, with seeds and test examples both at random where both '
        "are known; the correction by Holm is over all comparisons of this table. The t-test and the exact permutation "
        "test are over the seeds alone. Effect size: mean by deviation of the paired differences.</p>"
    )


def _difference_fields(page: Pages, entry: Difference) -> list[Field]:
    return [
        words(entry.words),
        number(entry.mean, page.gain, "most" if entry.significant else ""),
        Field(html=interval(entry.interval, page.gain), value=None if entry.interval is None else entry.interval[0]),
        number(entry.p, say_p),
        number(entry.p_holm, say_p, "most" if entry.significant else ""),
        number(entry.effect_size, lambda value: f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")),
        number(entry.t_test, say_p),
        number(entry.permutation, say_p),
        number(float(len(entry.seeds)), lambda value: f"{value:g}"),
    ]


def _selection(page: Pages) -> str:
    chosen = page.report.selection
    if chosen is None:
        return ""
    names = list(dict.fromkeys(name for rung in chosen.rungs for name in rung.scores))
    columns = [Column(name="candidate"), *(Column(name=rung.name, number=True) for rung in chosen.rungs)]
    rows = []
    for name in names:
        fields = [words(name)]
        for rung in chosen.rungs:
            kept = name in rung.kept
            fields.append(number(rung.scores.get(name), page.score, "most" if kept else ""))
        rows.append(fields)
    layers = " and ".join(map(str, chosen.layers))
    margin = "" if chosen.margin is None else f", {escape(chosen.margin)}"
    return (
        f"<p>Chosen: <strong>{escape(chosen.best)}</strong> (layer {escape(layers)}, site {escape(chosen.site)})"
        f"{margin}, at {100 * chosen.cost:.0f} % of what training with every candidate and seed takes.</p>"
        + table(columns, rows, "Scores of the candidates by round")
        + '<p class="note">Scores on validation data; bold: went on into the next round.</p>'
    )


def _arms(page: Pages) -> str:
    names = ("host", "donor layer", "trained", "all", "training")
    columns = [Column(name="arm"), Column(name="what it is", words=True)]
    columns += [Column(name=name, number=name in names[2:]) for name in names]
    rows = [
        [
            Field(html=page.arm(arm.name)),
            words(arm.text),
            words(arm.host),
            words(arm.donor or ""),
            number(arm.trained, say_count),
            number(arm.total, say_count),
            number(arm.training_seconds, say_time),
        ]
        for arm in page.report.arms
    ]
    return table(columns, rows, "The arms") + '<p class="note">Parameters, and mean time of a training.</p>'


def _open(report: StudyReport) -> str:
    cells = [*report.failed, *report.missing]
    if not cells:
        return ""

    def fields(cell: OpenCell) -> list[Field]:
        error = "" if cell.error is None else escape(cell.error)
        state = (
            '<span class="tag">not run yet</span>'
            if cell.error is None
            else f'<span class="tag down">failed</span> {error}'
        )
        share = number(cell.fraction, lambda value: f"{100 * value:g} %")
        return [
            words(cell.arm),
            words(cell.data),
            share,
            number(float(cell.seed), lambda v: f"{v:.0f}"),
            Field(html=state),
        ]

    columns = [Column(name="arm"), Column(name="data"), Column(name="share", number=True)]
    columns += [Column(name="seed", number=True), Column(name="what happened", words=True)]
    return "<p>The same command tries them again.</p>" + table(
        columns, map(fields, cells), "Trainings that are not done"
    )


def _made(report: StudyReport) -> str:
    settings = [[words(name), words(_said(value))] for name, value in report.settings.items()]
    versions = [[words(name), words(value)] for name, value in report.versions.items()]
    plan = dump_yaml(dict(report.plan))
    parts = [
        "<h3>Run it again</h3>",
        f'<div class="command"><pre>{escape(report.command)}</pre></div>',
        '<details class="raw"><summary>The plan, with every default filled in (study.yaml)</summary>',
        f'<pre tabindex="0">{escape(plan)}</pre></details>',
    ]
    if settings:
        columns = [Column(name="setting"), Column(name="value")]
        parts += ["<h3>Settings that all trainings share</h3>", table(columns, settings, "Settings of training")]
    if versions:
        columns = [Column(name="package"), Column(name="version")]
        parts += ["<h3>Versions</h3>", table(columns, versions, "Versions")]
    return "".join(parts)


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
