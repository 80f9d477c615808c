"""`surgeon evaluate`: measure a trained model."""

from dataclasses import fields
from typing import Annotated, Any

import typer

from layer_surgeon.errors import DataError, WorkspaceError
from layer_surgeon.finetune.config import FinetuneConfig

from .command import command, new_app, usage
from .ui import Ui, format_seconds

app = new_app()

# Of the settings of fine-tuning, those that matter where nothing is trained.
SETTINGS = (
    "max_length",
    "max_eval_samples",
    "text_column",
    "text_pair_column",
    "label_column",
    "device",
    "eval_batch_size",
)
WITHOUT = tuple(field.name for field in fields(FinetuneConfig) if field.name not in SETTINGS)


@command(app, settings=FinetuneConfig, without=WITHOUT)
def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="Folder or repo id of a trained model (default: the latest run).")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            "-d",
            help="A name of `surgeon datasets`, a Hub id, or a file (default: the test data of the run).",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which split (default: test, else the only one).")] = None,
    *,
    given: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Measure a trained model on a data set.

    Accuracy, macro F1, scores by class and the confusion matrix, over the whole set.
    """
    with usage():
        FinetuneConfig(**given)
    folder = model or str(ui.workspace.latest("run"))

    from layer_surgeon.finetune import evaluate_model

    result = evaluate_model(folder, dataset or _test_data(folder), split=split, progress=ui.progress, **given)
    metrics = result.metrics
    if not ui.as_json:
        ui.facts(
            {
                "model": folder,
                "data": f"{result.data}, {metrics.examples:,} examples ({result.num_truncated:,} cut)",
                "accuracy": f"{metrics.accuracy:.4f}",
                "macro F1": f"{metrics.macro_f1:.4f}",
                "loss": f"{metrics.loss:.4f}",
                "time": format_seconds(result.seconds),
            }
        )
        rows = [
            (name, f"{s.precision:.4f}", f"{s.recall:.4f}", f"{s.f1:.4f}", f"{s.support:,}", *counts)
            for (name, s), counts in zip(metrics.per_class.items(), metrics.confusion, strict=True)
        ]
        named = [f"as {name}" for name in metrics.per_class]
        ui.table(("class", "precision", "recall", "F1", "examples", *named), rows)
    return {
        "model": folder,
        "data": result.data,
        "truncated": result.num_truncated,
        "seconds": round(result.seconds, 3),
        **metrics.as_dict(),
    }


def _test_data(folder: str) -> list[str]:
    from pathlib import Path

    from layer_surgeon.finetune.results import read_results

    run = read_results(Path(folder))
    if run is None:
        raise WorkspaceError(f"{folder} is no run of surgeon finetune, so its test data is not known. Name --dataset.")
    if not run["data"]["test_spec"]:
        raise DataError(f"The run {folder} had no test data ({run['data']['name']} has no test split). Name --dataset.")
    return list(run["data"]["test_spec"])
