"""The numbers of a report for other programs: one row per training and test set, and one per comparison."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from layer_surgeon._text import csv_cell
from layer_surgeon.study.report_types import Measurement, Span, StudyReport


def measurements_csv(report: StudyReport) -> str:
    """One row per arm, data set, share, test set and seed; nothing is rounded or averaged."""
    arms = {arm.name: arm for arm in report.arms}
    scores = _names(entry.scores for entry in report.measurements)
    validation = _names(entry.validation for entry in report.measurements)
    header = (
        *("study", "arm", "kind", "host", "donor", "data", "fraction", "test", "seed", "examples"),
        *scores,
        *(f"validation_{name}" for name in validation),
        *("trained_parameters", "parameters", "train_examples", "best_epoch"),
        *("training_seconds", "testing_seconds", "device"),
    )

    def row(entry: Measurement) -> Sequence[Any]:
        arm = arms[entry.arm]
        return (
            *(report.name, entry.arm, arm.kind, arm.host, arm.donor),
            *(entry.data, entry.fraction, entry.test, entry.seed, entry.examples),
            *(entry.scores.get(name) for name in scores),
            *(entry.validation.get(name) for name in validation),
            *(entry.trained, entry.total, entry.train_examples, entry.best_epoch),
            *(entry.training_seconds, entry.testing_seconds, entry.device),
        )

    return _csv(header, map(row, report.measurements))


def comparisons_csv(report: StudyReport) -> str:
    """One row per comparison: the difference, its tests and intervals, and the verdict."""
    header = (
        *("study", "data", "fraction", "test", "examples", "metric", "arm", "against", "seeds"),
        *("difference", "deviation", "effect_size", "low", "high", "basis", "p", "p_holm", "significant", "better"),
        *("seed_low", "seed_high", "example_low", "example_high", "both_low", "both_high", "t_test", "permutation"),
        "words",
    )
    rows = (
        (
            *(report.name, table.data, table.fraction, table.test, table.examples, report.metric),
            *(entry.arm, entry.against, len(entry.seeds), entry.mean, entry.deviation, entry.effect_size),
            *_ends(entry.interval),
            *(entry.basis, entry.p, entry.p_holm, entry.significant, entry.better),
            *(*_ends(entry.seed_interval), *_ends(entry.example_interval), *_ends(entry.both_interval)),
            *(entry.t_test, entry.permutation, entry.words),
        )
        for table in report.tables
        for entry in table.comparisons
    )
    return _csv(header, rows)


def _names(entries: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry))


def _ends(span: Span | None) -> tuple[float | None, float | None]:
    return (None, None) if span is None else span


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_cell, header))
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return text.getvalue()
