"""`surgeon evaluate`: measure a trained model on a data set."""

from dataclasses import fields
from typing import Annotated, Any

import typer

from layer_surgeon._format import format_seconds
from layer_surgeon.errors import DataError, WorkspaceError
from layer_surgeon.finetune.config import COLUMN_SETTINGS, MODEL_SETTINGS, FinetuneConfig
from layer_surgeon.tasks import score_title

from .command import DonorOption, command, new_app, nothing_kept, usage
from .ui import Ui

app = new_app()

# The fine-tuning settings that also matter without training.
_SETTINGS = (*MODEL_SETTINGS, *COLUMN_SETTINGS, "max_eval_samples", "extra_metrics", "device", "eval_batch_size")
WITHOUT = tuple(field.name for field in fields(FinetuneConfig) if field.name not in _SETTINGS)
# What a run keeps is the default, and not the default of training.
OF_THE_RUN = {
    field.name: f"that of the run, else {field.default}"
    for field in fields(FinetuneConfig)
    if field.name in MODEL_SETTINGS and field.default
}


@command(app, settings=FinetuneConfig, without=WITHOUT, defaults=OF_THE_RUN)
def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="Folder or repo id of a trained model (default: the latest run).")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            "-d",
            help="A name of `surgeon datasets`, a Hub id, a file, a folder of files, or - for stdin (default: the test "
            "data of the run).",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which split (default: test, or the only one).")] = None,
    donor: DonorOption = None,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Measure a trained model on a data set.

    Uses the whole data set. For classification, the results are accuracy, macro F1, scores by class and the confusion
    matrix.
    """
    with usage():
        FinetuneConfig(**settings)
    folder = model or str(ui.latest("run"))
    with nothing_kept():
        from layer_surgeon.finetune import evaluate_model

        data = dataset or _test_data(folder)
        result = evaluate_model(folder, data, split=split, donor=donor, progress=ui.progress, **settings)
    metrics = result.metrics
    if not ui.as_json:
        ui.facts(
            {
                "model": folder,
                "data": f"{result.data}, {metrics.examples:,} examples ({result.num_truncated:,} truncated)",
                **{score_title(score): f"{value:.4f}" for score, value in metrics.scores.items()},
                "time": format_seconds(result.seconds),
            }
        )
        _show_classes(metrics, ui)
    return {
        "model": folder,
        "task": result.task,
        "data": result.data,
        "truncated": result.num_truncated,
        "seconds": round(result.seconds, 3),
        **metrics.as_dict(),
    }


def _show_classes(metrics: Any, ui: Ui) -> None:
    """Show the scores by class, and the confusion matrix if there is one."""
    per_class = getattr(metrics, "per_class", None)
    if not per_class:
        return
    confusion = getattr(metrics, "confusion", None)
    rows = [
        (name, f"{scores.precision:.4f}", f"{scores.recall:.4f}", f"{scores.f1:.4f}", f"{scores.support:,}")
        + (confusion[index] if confusion else ())
        for index, (name, scores) in enumerate(per_class.items())
    ]
    predicted = [f"as {name}" for name in per_class] if confusion else []
    ui.table(("class", "precision", "recall", "F1", "examples", *predicted), rows)


def _test_data(folder: str) -> list[str]:
    from pathlib import Path

    from layer_surgeon.finetune.moved import find_moved
    from layer_surgeon.finetune.results import read_results

    run = read_results(Path(folder))
    if run is None:
        raise WorkspaceError(
            f"{folder} is not a run of surgeon finetune, so its test data is unknown. Choose the data with --dataset."
        )
    if not run["data"]["test_spec"]:
        problem = "had no test data" if run.get("test") is None else "got its test data from memory or stdin"
        raise DataError(f"The run {folder} {problem}. Choose the data with --dataset.")
    return find_moved(list(run["data"]["test_spec"]), Path(folder))
