"""The numbers of a report as CSV: one row per training and test set, and one row per comparison."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from layer_surgeon._text import csv_cell
from layer_surgeon.report.load import StudyReport


def measurements_csv(report: StudyReport) -> str:
    """Return one row per arm, data set, share, test set and seed, without rounding or averaging."""
    scores = _names(test.scores for result in report.results for test in result.tests.values())
    validation = _names(result.validation.scores for result in report.results)
    rows = []
    for result in report.results:
        arm = report.summary.arms[result.arm]
        for name, test in result.tests.items():
            rows.append(
                {
                    "study": report.summary.name,
                    "arm": result.arm,
                    "kind": arm.kind,
                    "host": arm.host,
                    "donor": arm.donor,
                    "data": result.data,
                    "fraction": result.fraction,
                    "test": name,
                    "seed": result.seed,
                    "examples": test.examples,
                    **{metric: test.scores.get(metric) for metric in scores},
                    **{f"validation_{metric}": result.validation.scores.get(metric) for metric in validation},
                    "trained_parameters": result.parameters.trained,
                    "parameters": result.parameters.total,
                    "train_examples": result.train_examples,
                    "best_epoch": result.best_epoch,
                    "training_seconds": result.seconds.training,
                    "testing_seconds": result.seconds.testing,
                    "device": result.device,
                }
            )
    columns = (
        *("study", "arm", "kind", "host", "donor", "data", "fraction", "test", "seed", "examples"),
        *scores,
        *(f"validation_{name}" for name in validation),
        *("trained_parameters", "parameters", "train_examples", "best_epoch"),
        *("training_seconds", "testing_seconds", "device"),
    )
    return _csv(columns, rows)


def comparisons_csv(report: StudyReport) -> str:
    """Return one row per comparison: the difference, its tests and intervals, and the verdict."""
    summary = report.summary
    columns = (
        *("study", "data", "fraction", "test", "examples", "metric", "arm", "against", "seeds"),
        *("difference", "deviation", "effect_size", "low", "high", "basis", "p", "p_holm", "significant", "better"),
        *("p_equivalence", "equivalent"),
        *("seed_low", "seed_high", "example_low", "example_high", "both_low", "both_high", "t_test", "permutation"),
        "words",
    )
    rows = [
        {
            "study": summary.name,
            "data": table.data,
            "fraction": table.fraction,
            "test": table.test,
            "examples": table.examples,
            "metric": summary.metric,
            "arm": comparison.arm,
            "against": comparison.against,
            "seeds": len(comparison.seeds),
            "difference": comparison.mean,
            "deviation": comparison.deviation,
            "effect_size": comparison.effect_size,
            "basis": comparison.basis,
            "p": comparison.p,
            "p_holm": comparison.p_holm,
            "significant": comparison.significant,
            "better": summary.is_better(comparison),
            "p_equivalence": comparison.p_equivalence,
            "equivalent": comparison.equivalent,
            "t_test": comparison.t_test,
            "permutation": comparison.permutation,
            "words": comparison.words,
            **_ends("", comparison.interval),
            **_ends("seed_", comparison.seed_interval),
            **_ends("example_", comparison.example_interval),
            **_ends("both_", comparison.both_interval),
        }
        for table in summary.tables
        for comparison in table.comparisons
    ]
    return _csv(columns, rows)


def _names(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _ends(prefix: str, span: Sequence[float] | None) -> dict[str, float | None]:
    low, high = (None, None) if span is None else span
    return {f"{prefix}low": low, f"{prefix}high": high}


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    import pandas as pd

    # With dtype object, because pandas would turn whole numbers into floats if a value is missing.
    cells = [[csv_cell(row.get(name)) for name in columns] for row in rows]
    frame = pd.DataFrame(cells, columns=[csv_cell(name) for name in columns], dtype=object)
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text
