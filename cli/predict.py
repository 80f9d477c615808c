"""`surgeon predict`: label texts with a trained model."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_surgeon.errors import WorkspaceError
from layer_surgeon.finetune.config import FinetuneConfig

from .command import command, new_app, usage
from .errors import UsageError
from .evaluate import WITHOUT
from .ui import Ui

if TYPE_CHECKING:
    from layer_surgeon.finetune import Prediction

app = new_app()

_FORMATS = (".jsonl", ".csv")


@command(app, settings=FinetuneConfig, without=(*WITHOUT, "max_eval_samples", "label_column"))
def predict(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; a single - reads one text per line from stdin.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Folder or repo id of a trained model (default: the latest run)."),
    ] = None,
    input: Annotated[  # the option is called --input
        list[Path] | None,
        typer.Option("--input", "-i", help="A .txt (one text per line), CSV, TSV, JSONL or Parquet file; repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the predictions into this .jsonl or .csv file.")
    ] = None,
    *,
    given: dict[str, Any],
    ui: Ui,
) -> list[dict[str, Any]]:
    """Label texts with a trained model.

    Shows the class of each text and its probability; with --output or --json every class's probability.
    """
    with usage():
        config = FinetuneConfig(**given)
    if bool(texts) == bool(input):
        raise UsageError('Give either texts (surgeon predict "A text.") or files (--input), or - for stdin.')
    if output is not None and output.suffix.lower() not in _FORMATS:
        raise UsageError(f"--output {output}: the suffix must be one of {', '.join(_FORMATS)}.")
    folder = model or str(ui.workspace.latest("run"))

    from layer_surgeon import finetune
    from layer_surgeon.finetune.evaluation import load_texts

    wanted: Sequence[Any]
    if input:
        wanted = load_texts(input, config)
    elif texts == ["-"]:
        wanted = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    else:
        wanted = texts or []
    predictions = finetune.predict(folder, wanted, progress=ui.progress, **given)
    if output is not None:
        _write(predictions, output)
        ui.progress.notice(f"{len(predictions):,} predictions are in {output}.")
    elif not ui.as_json:
        ui.table(
            ("class", "probability", "text"),
            [
                (p.label, f"{p.score:.4f}", p.text if p.text_pair is None else f"{p.text} | {p.text_pair}")
                for p in predictions
            ],
        )
    return [prediction.as_row() for prediction in predictions]


def _write(predictions: Sequence["Prediction"], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    rows = [prediction.as_row() for prediction in predictions]
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            else:
                flat = [
                    {name: value for name, value in row.items() if name != "probabilities"}
                    | {f"p({name})": value for name, value in row["probabilities"].items()}
                    for row in rows
                ]
                writer = csv.DictWriter(file, fieldnames=list(flat[0]) if flat else ["text", "label", "score"])
                writer.writeheader()
                writer.writerows(flat)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WorkspaceError(f"{path} can't be written: {error.strerror}.") from error
