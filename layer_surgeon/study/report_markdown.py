"""A report as one Markdown file, as GitHub shows it: the verdict first."""

import re
from collections.abc import Mapping, Sequence

from layer_surgeon.study import report_text as say
from layer_surgeon.study.report_types import LayerSweep, OpenCell, StudyReport, Table
from layer_surgeon.study.verdict import say_share

# To be shown as they are; the others that mean something do so at the beginning of a line only, where no name stands.
_MARKED = re.compile(r"([\\`*_{}\[\]#~])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "$": "&#36;"}


def escape(text: object) -> str:
    """Text of people, to stand within a line or in a table's cell of Markdown."""
    line = " ".join(str(text).split())
    return "".join(_ENTITIES.get(char, char) for char in _MARKED.sub(r"\\\1", line))


def code(text: str) -> str:
    """A block of code that holds any text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}\n{text}\n{fence}"


def markdown(report: StudyReport, pictures: Mapping[str, str]) -> str:
    """The whole file.

    Args:
        report: What it shows.
        pictures: Path, as seen from the file -> what it shows; those that are written beside it.
    """
    parts = [
        f"# {escape(report.title)}",
        f"> **{escape(report.verdict)}**",
        f"{escape(report.state)} {_intervals(report)}",
        *_selection(report),
    ]
    parts += [part for table in report.tables for part in _table(table, report)]
    parts += [part for sweep in report.sweeps for part in _sweep(sweep, report)]
    parts += _shifts(report)
    parts += _curves(report)
    if pictures:
        parts += ["## Pictures", *(f"![{escape(text)}]({path})" for path, text in pictures.items())]
    parts += _open("Failed", report.failed) + _open("Missing", report.missing)
    parts += _arms(report)
    parts += _how(report)
    return "\n\n".join(parts) + "\n"


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table; cells are escaped already. Columns of `numbers` are set to the right."""
    marks = ["---:" if index in numbers else "---" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *rows))


def _intervals(report: StudyReport) -> str:
    several = len(report.seeds) > 1
    how = "by t over the seeds" if several else "by bootstrap over the test examples"
    return f"Intervals of scores are 95 %, {how}; those of differences are of the test that decides."


def _table(table: Table, report: StudyReport) -> list[str]:
    others = say.other_metrics(table, report)
    header = [
        *("arm", "seeds", escape(say.metric_name(report)), "95 % interval"),
        *map(escape, others),
        *("trained", "training", "against the reference"),
    ]
    rows = []
    for row in table.rows:
        mean = say.say_mean(row, report)
        rows.append(
            [
                escape(row.arm),
                str(len(row.seeds)),
                f"**{mean}**" if row.best else mean,
                say.say_span(row.interval, report),
                *(f"{row.scores[name]:.4g}" if name in row.scores else "" for name in others),
                _count(row.trained),
                say.say_time(row.training_seconds),
                row.verdict or "",
            ]
        )
    parts = [f"## {escape(table.place)}", f"{table.examples} test examples. The best mean is bold."]
    parts.append(_grid(header, rows, range(1, len(header) - 1)))
    if table.comparisons:
        cells = [
            [
                f"{escape(entry.arm)} - {escape(entry.against)}",
                entry.size,
                say.say_gains(entry.interval, report),
                say.say_holm(entry),
                say.say_effect(entry),
                say.say_verdict(entry),
            ]
            for entry in table.comparisons
        ]
        head = ("comparison", "difference", "95 % interval", "p (Holm)", "effect size", "verdict")
        parts.append(_grid(head, cells, (1, 2, 3, 4)))
    return parts


def _selection(report: StudyReport) -> list[str]:
    if report.selection is None:
        return []
    chosen = report.selection
    names = list(dict.fromkeys(name for rung in chosen.rungs for name in rung.scores))
    rows = [
        [escape(name), *(f"{rung.scores[name]:.4f}" if name in rung.scores else "" for rung in chosen.rungs)]
        for name in names
    ]
    layers = ", ".join(map(str, chosen.layers))
    margin = "" if chosen.margin is None else f", {escape(chosen.margin)}"
    return [
        "## What was selected",
        f"**{escape(chosen.best)}** (layer {layers}, site {escape(chosen.site)}){margin}, at {chosen.cost:.0%} of the "
        "cost of the whole sweep. Scores are of the validation part; the test part was looked at once, for the chosen "
        "arm and the host alone.",
        _grid(["candidate", *(escape(rung.name) for rung in chosen.rungs)], rows, range(1, len(chosen.rungs) + 1)),
    ]


def _sweep(sweep: LayerSweep, report: StudyReport) -> list[str]:
    rows = []
    for point in sweep.points:
        deviation = "" if point.deviation is None else say.say_score(point.deviation, report)
        mean = say.say_score(point.mean, report)
        rows.append([escape(point.label), f"**{mean}**" if point.best else mean, deviation, point.verdict or ""])
    if sweep.reference is not None:
        scatter = sweep.reference.deviation
        spread = "" if scatter is None else say.say_score(scatter, report)
        rows.append([escape(sweep.reference.arm), say.say_score(sweep.reference.mean, report), spread, ""])
    header = [escape(sweep.axis), escape(say.metric_name(report)), "deviation", "against the reference"]
    title = f"## Which {sweep.varied}: {escape(sweep.donor)} in {escape(sweep.host)}, {escape(sweep.place)}"
    return [title, _grid(header, rows, (1, 2))]


def _shifts(report: StudyReport) -> list[str]:
    if not report.shifts:
        return []
    parts = ["## Domain shift", "Rows: trained on. Columns: tested on."]
    for matrix in report.shifts:
        parts.append(f"### {escape(matrix.arm)}{say_share(matrix.fraction)}")
        rows = [[escape(row[0]), *row[1:]] for row in say.shift_rows(matrix, report)]
        parts.append(_grid(["", *map(escape, matrix.tested_on)], rows, range(1, len(matrix.tested_on) + 1)))
    return parts


def _curves(report: StudyReport) -> list[str]:
    rows = []
    for curve in report.curves:
        place = escape(curve.data + say_share(curve.fraction))
        for point in curve.points:
            score = "" if point.score is None else say.say_score(point.score[0], report)
            rows.append([escape(curve.arm), place, f"{point.epoch:g}", f"{point.loss[0]:.4f}", score])
    if not rows:
        return []
    header = ["arm", "data", "epoch", "training loss", f"validation {escape(say.metric_name(report))}"]
    grid = _grid(header, rows, (2, 3, 4))
    return ["## Learning", f"<details><summary>Means over the seeds, by epoch</summary>\n\n{grid}\n\n</details>"]


def _open(title: str, cells: Sequence[OpenCell]) -> list[str]:
    if not cells:
        return []
    rows = [
        [escape(cell.arm), escape(cell.data), f"{cell.fraction:g}", str(cell.seed), escape(cell.error or "")]
        for cell in cells
    ]
    return [f"## {title}", _grid(("arm", "data", "share", "seed", "error"), rows, (2, 3))]


def _arms(report: StudyReport) -> list[str]:
    rows = [
        [escape(arm.name), escape(arm.text), escape(arm.host), escape(arm.donor or ""), _count(arm.total)]
        for arm in report.arms
    ]
    return ["## Arms", _grid(("arm", "what it is", "host", "donor", "parameters"), rows, (4,))]


def _count(count: int | None) -> str:
    return "" if count is None else say.say_count(count)


def _how(report: StudyReport) -> list[str]:
    facts = {
        "task": report.task,
        "compared by": f"{report.metric}, {'higher' if report.higher_is_better else 'lower'} is better",
        "seeds": ", ".join(map(str, report.seeds)),
        "shares of the training data": ", ".join(f"{fraction:g}" for fraction in report.fractions),
        "trained between": f"{report.started} and {report.finished}" if report.started else "nothing is trained yet",
        "time of all trainings": say.say_time(report.training_seconds),
        "machine": "; ".join(report.machines),
        **report.versions,
        **report.settings,
    }
    rows = [[escape(name), escape(say.say_value(value))] for name, value in facts.items()]
    return [
        "## How it was done",
        "The command that repeats it:",
        code(report.command),
        f"<details><summary>Settings and versions</summary>\n\n{_grid(('', ''), rows)}\n\n</details>",
    ]
