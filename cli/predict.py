"""`surgeon predict`: use a trained model on texts."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from layer_surgeon._io import write_text
from layer_surgeon._text import csv_cell
from layer_surgeon.errors import DataError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.tasks import get_task

from .command import DonorOption, command, new_app, nothing_kept, usage
from .errors import UsageError
from .evaluate import OF_THE_RUN, WITHOUT
from .ui import Ui

app = new_app()

_FORMATS = (".jsonl", ".csv")


_WITHOUT = (*WITHOUT, "max_eval_samples", "label_column", "extra_metrics")


@command(app, settings=FinetuneConfig, without=_WITHOUT, defaults=OF_THE_RUN)
def predict(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts, or - to read one text per line from stdin.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Folder or repo id of a trained model (default: the latest run)."),
    ] = None,
    input: Annotated[  # the option is called --input
        list[Path] | None,
        typer.Option(
            "--input", "-i", help="A .txt (one text per line), CSV, TSV, JSONL or Parquet file. Repeat it for several."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the predictions to this .jsonl or .csv file.")
    ] = None,
    donor: DonorOption = None,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> list[dict[str, Any]]:
    """Label texts, answer questions or write with a trained model.

    Shows the class of each text and its probability; with --output or --json, the probabilities of all classes.
    For questions, write "question, tab, text", or use a file with both columns.
    """
    with usage():
        config = FinetuneConfig(**settings)
    if bool(texts) == bool(input):
        raise UsageError('Give either texts (surgeon predict "A text.") or files (--input), or - for stdin.')
    if output is not None and output.suffix.lower() not in _FORMATS:
        raise UsageError(f"--output {output}: the suffix must be one of {', '.join(_FORMATS)}.")
    folder = model or str(ui.latest("run"))
    with nothing_kept():
        from layer_surgeon import finetune
        from layer_surgeon.finetune.evaluation import load_texts, trained_task

        task = get_task(trained_task(folder, config))
        inputs: Sequence[Any]
        if input:
            inputs = load_texts(input, config, task.name, model=folder, progress=ui.progress)
        else:
            inputs = _read_lines(sys.stdin.buffer) if texts == ["-"] else texts or []
            if task.columns.pair:
                inputs = [_split_pair(text, *task.columns.titles[:2]) for text in inputs]
        predictions = finetune.predict(folder, inputs, donor=donor, progress=ui.progress, **settings)
    if output is not None:
        _write(predictions, output)
        ui.progress.notice(f"{len(predictions):,} predictions are in {output}.")
    elif not ui.as_json:
        rows = [tuple(_cell(getattr(prediction, name)) for name in task.shown.values()) for prediction in predictions]
        ui.table(tuple(task.shown), rows)
    return [prediction.as_row() for prediction in predictions]


def _read_lines(stream: BinaryIO) -> list[str]:
    try:
        text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8 text (byte {error.start:,}). Convert it to UTF-8.") from error
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None) if line.strip()]


def _split_pair(text: str, first: str, second: str) -> tuple[str, str]:
    """Split an input at its tab. `first` and `second` are the task's words for the two texts."""
    parts = text.partition("\t")
    if not parts[1]:
        raise UsageError(
            f"{text!r} has no tab. Write the {first}, a tab, and the {second}; or use --input with a file that has the "
            f"columns {first} and {second}."
        )
    return parts[0], parts[2]


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else value or "(none)"


def _write(predictions: Sequence[Any], path: Path) -> None:
    rows = [prediction.as_row() for prediction in predictions]
    if path.suffix.lower() == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    flat_rows = [_flatten(row) for row in rows]
    header = list(flat_rows[0]) if flat_rows else ["text", "label", "score"]
    for cells in (header, *(row.values() for row in flat_rows)):
        writer.writerow([csv_cell(cell) for cell in cells])
    write_text(path, table.getvalue())


def _flatten(row: dict[str, Any]) -> dict[str, Any]:
    """Make one cell per column, with a column for every class and lists as JSON."""
    cells = {name: value for name, value in row.items() if name != "probabilities"}
    cells |= {f"p({name})": value for name, value in row.get("probabilities", {}).items()}
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
        for name, value in cells.items()
    }
