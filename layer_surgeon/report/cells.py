"""The tables of a report for the page and the Markdown: columns, and cells of plain text.

The text of a cell is not escaped; the templates do that. Tables are sorted by the value of a cell.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from layer_surgeon._format import format_score, format_seconds
from layer_surgeon.report import words as say
from layer_surgeon.report.load import StudyReport
from layer_surgeon.report.series import LayerSweep, LearningCurve, ShiftMatrix, place_of
from layer_surgeon.study.tables import Comparison, Row, Summary, Table
from layer_surgeon.study.verdict import say_share


@dataclass(frozen=True, kw_only=True)
class Column:
    """The head of a column.

    Attributes:
        name: The title.
        number: Whether the cells are numbers.
        long: Whether the cells are sentences.
        rare: Whether a button shows the column where the window is too narrow for all columns.
    """

    name: str
    number: bool = False
    long: bool = False
    rare: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: The displayed text.
        value: The value that a column of numbers is sorted by. Cells without a value (None) are sorted last.
        strong: Whether the text is bold.
        arm: Whether the text is the name of an arm, which is shown with its mark.
        tag: Whether the text is a verdict, which is shown as a tag.
        hint: A tooltip. Readers without a mouse find it in the list below the table.
    """

    text: str
    value: float | None = None
    strong: bool = False
    arm: bool = False
    tag: bool = False
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table. The first cell of a row is the row's head. `hints` is the title of the list of its tooltips."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    hints: str = ""


def _table(caption: str, columns: Iterable[Column], rows: Iterable[Sequence[Cell]], hints: str = "") -> ReportTable:
    return ReportTable(caption=caption, columns=tuple(columns), rows=tuple(map(tuple, rows)), hints=hints)


def _numbers(*names: str, rare: bool = False) -> list[Column]:
    return [Column(name=name, number=True, rare=rare) for name in names]


def _number(value: float | None, text: Callable[[float], str], *, strong: bool = False) -> Cell:
    return Cell(text="" if value is None else text(value), value=value, strong=strong)


def _arm(name: str) -> Cell:
    return Cell(text=name, arm=True)


def _outcome(text: str | None, otherwise: str = "") -> Cell:
    return Cell(text=otherwise) if text is None else Cell(text=text, tag=True)


def other_metrics(table: Table, summary: Summary) -> list[str]:
    """Return the metrics of a table other than the compared one."""
    names = dict.fromkeys(name for row in table.rows for name in row.scores)
    return [name for name in names if name != summary.metric]


def scores_table(table: Table, summary: Summary) -> ReportTable:
    """Return the table of scores: every arm with its score, intervals, parameters and training time."""
    others = other_metrics(table, summary)
    columns = [
        Column(name="arm"),
        *_numbers(say.metric_name(summary), "deviation"),
        Column(name=f"against {summary.reference}"),
        *_numbers("95 % over seeds"),
        *_numbers("95 % over examples", rare=True),
        *_numbers("seeds", "trained", "training"),
        *_numbers("examples trained on", *(name.replace("_", " ") for name in others), rare=True),
    ]
    best = summary.best(table.rows)
    rows = [_score_cells(table, row, summary, others, best=row.mean == best) for row in table.rows]
    return _table(f"{say.metric_name(summary)} by arm on {place_of(table)}", columns, rows, "The scores by seed")


def _score_cells(table: Table, row: Row, summary: Summary, others: Sequence[str], *, best: bool) -> list[Cell]:
    counts = summary.parameters(row.arm)
    spans = [say.score_span(row.seed_interval, summary), row.example_interval]
    by_seed = ", ".join(
        f"{seed}: {say.say_score(value, summary)}" for seed, value in zip(row.seeds, row.by_seed, strict=True)
    )
    return [
        _arm(row.arm),
        _number(row.mean, lambda value: say.say_score(value, summary), strong=best),
        _number(row.deviation, lambda value: say.say_score(value, summary)),
        _outcome(summary.outcome(summary.against_reference(table, row.arm))),
        *(Cell(text=say.say_span(span, summary), value=None if span is None else span[0]) for span in spans),
        Cell(text=str(len(row.seeds)), value=len(row.seeds), hint=f"{row.arm}: {by_seed}"),
        _number(None if counts is None else counts.trained, say.say_count),
        _number(row.training_seconds, format_seconds),
        _number(row.train_examples, lambda value: f"{value:,}"),
        *(_number(row.scores.get(name), format_score) for name in others),
    ]


def differences_table(table: Table, summary: Summary) -> ReportTable:
    """Return the table of comparisons, with their tests and verdicts."""
    columns = [
        Column(name="comparison"),
        *_numbers("difference", "95 % interval", "p", "p (Holm)", "effect size"),
        *_numbers("p (t-test)", "p (permutation)", rare=True),
        *([] if summary.equivalence is None else _numbers("p (equivalence)")),
        *_numbers("seeds"),
        Column(name="verdict"),
    ]
    rows = [_difference_cells(comparison, summary) for comparison in table.comparisons]
    return _table(f"Comparisons on {place_of(table)}", columns, rows, "The verdicts in words")


def _difference_cells(comparison: Comparison, summary: Summary) -> list[Cell]:
    interval = comparison.interval
    return [
        Cell(text=f"{comparison.arm} - {comparison.against}"),
        _number(comparison.mean, lambda value: say.say_gain(value, summary), strong=comparison.significant),
        Cell(text=say.say_gains(interval, summary), value=None if interval is None else interval[0]),
        _number(comparison.p, say.say_optional_p),
        _number(comparison.p_holm, say.say_optional_p, strong=comparison.significant),
        Cell(text=say.say_effect(comparison), value=comparison.effect_size),
        _number(comparison.t_test, say.say_optional_p),
        _number(comparison.permutation, say.say_optional_p),
        *([] if summary.equivalence is None else [_number(comparison.p_equivalence, say.say_optional_p)]),
        _number(len(comparison.seeds), lambda value: f"{value:g}"),
        replace(_outcome(summary.outcome(comparison), "no test possible"), hint=comparison.words),
    ]


def layers_table(sweep: LayerSweep, summary: Summary) -> ReportTable:
    """Return the table of a sweep: its points, and the host alone."""
    columns = [
        Column(name=sweep.axis),
        *_numbers(say.metric_name(summary), "deviation"),
        Column(name="against the reference"),
    ]
    labelled_rows = [(point.label, point.row, point.best, point.outcome) for point in sweep.points]
    if sweep.reference is not None:
        labelled_rows.append((sweep.reference.arm, sweep.reference, False, None))
    rows = [
        [
            Cell(text=label),
            _number(row.mean, lambda value: say.say_score(value, summary), strong=best),
            _number(row.deviation, lambda value: say.say_score(value, summary)),
            _outcome(outcome),
        ]
        for label, row, best, outcome in labelled_rows
    ]
    return _table(f"{sweep.donor} in {sweep.host}: {place_of(sweep.table)}", columns, rows)


def shift_table(shift: ShiftMatrix, summary: Summary) -> ReportTable:
    """Return the table of an arm's means by training set (rows) and test set (columns)."""
    rows = [
        [Cell(text=name), *(_number(mean, lambda value: say.say_score(value, summary)) for mean in means)]
        for name, means in zip(shift.trained_on, shift.means, strict=True)
    ]
    columns = [Column(name="trained on"), *_numbers(*shift.tested_on)]
    return _table(f"{shift.arm}{say_share(shift.fraction)}: {say.metric_name(summary)}", columns, rows)


def learning_table(curves: Sequence[LearningCurve], summary: Summary) -> ReportTable:
    """Return the table of learning curves: means over the seeds, by epoch."""
    columns = [Column(name="arm"), Column(name="data"), *_numbers("epoch", "training loss")]
    columns += _numbers(f"validation {say.metric_name(summary)}")
    rows = [
        [
            _arm(curve.arm),
            Cell(text=f"{curve.data}{say_share(curve.fraction)}"),
            _number(point.epoch, lambda value: f"{value:g}"),
            _number(point.loss[0], lambda value: f"{value:.4f}"),
            _number(None if point.score is None else point.score[0], lambda value: say.say_score(value, summary)),
        ]
        for curve in curves
        for point in curve.points
    ]
    return _table("Learning, by epoch", columns, rows)


def selection_table(report: StudyReport) -> ReportTable | None:
    """Return the table of a selection: scores by round, bold for candidates that stayed. None without a selection."""
    if report.selection is None:
        return None
    rungs = report.selection.rungs
    names = list(dict.fromkeys(name for rung in rungs for name in rung.scores))
    rows = [
        [
            Cell(text=name),
            *(_number(rung.scores.get(name), lambda v: f"{v:.4f}", strong=name in rung.kept) for rung in rungs),
        ]
        for name in names
    ]
    columns = [Column(name="candidate"), *_numbers(*(rung.name for rung in rungs))]
    return _table("Scores of the candidates by round", columns, rows)


def arms_table(summary: Summary) -> ReportTable:
    """Return the table that describes the arms."""
    columns = [
        Column(name="arm"),
        Column(name="description", long=True),
        Column(name="host"),
        Column(name="donor layer"),
        *_numbers("trained", "all", "training"),
    ]
    rows = [
        [
            _arm(name),
            *(Cell(text=text) for text in (arm.text, arm.host, arm.donor or "")),
            _number(None if arm.parameters is None else arm.parameters.trained, say.say_count),
            _number(None if arm.parameters is None else arm.parameters.total, say.say_count),
            _number(arm.training_seconds, format_seconds),
        ]
        for name, arm in summary.arms.items()
    ]
    return _table("The arms", columns, rows)


def open_table(report: StudyReport) -> ReportTable | None:
    """Return the table of unfinished trainings; None if all are finished."""
    cells = [*report.failed, *report.missing]
    columns = [Column(name="arm"), Column(name="data"), *_numbers("share", "seed"), Column(name="state")]
    rows = [
        [
            Cell(text=cell.arm),
            Cell(text=cell.data),
            _number(cell.fraction, lambda value: f"{100 * value:g} %"),
            _number(cell.seed, lambda value: f"{value:.0f}"),
            Cell(text="not run yet" if cell.error is None else "failed", tag=True),
            Cell(text=cell.error or ""),
        ]
        for cell in cells
    ]
    columns.append(Column(name="error", long=True))
    return _table("Unfinished trainings", columns, rows) if cells else None


def facts_table(caption: str, names: tuple[str, str], facts: Mapping[str, object]) -> ReportTable:
    """Return a table of names and values."""
    rows = [[Cell(text=name), Cell(text=say.say_setting(value))] for name, value in facts.items()]
    return _table(caption, [Column(name=name) for name in names], rows)


def study_facts(report: StudyReport) -> dict[str, object]:
    """Return the facts about how a study was made."""
    summary = report.summary
    period = f"{report.started} and {report.finished}" if report.started else "nothing is trained yet"
    return {
        "task": summary.task,
        "compared by": f"{summary.metric}, {'higher' if summary.higher_is_better else 'lower'} is better",
        "significant below": summary.alpha,
        "trainings": f"{len(report.results):,} of {summary.cells.planned:,} are done",
        "seeds": report.plan.seeds,
        "shares of the training data": [f"{fraction:g}" for fraction in report.plan.fractions],
        "trainings ended between": period,
        "time of all trainings": format_seconds(report.training_seconds),
        "machine": "; ".join(report.machines),
    }
