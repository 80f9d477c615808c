"""`surgeon predict`: what a trained model says of texts."""

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from layer_surgeon._io import write_text
from layer_surgeon._text import csv_cell
from layer_surgeon.finetune.config import FinetuneConfig

from .command import command, new_app, usage
from .errors import UsageError
from .evaluate import WITHOUT
from .ui import Ui

app = new_app()

_FORMATS = (".jsonl", ".csv")


@command(app, settings=FinetuneConfig, without=(*WITHOUT, "max_eval_samples", "label_column", "extra_metrics"))
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
    donor: Annotated[
        str | None,
        typer.Option(
            help="The donor layer of a graft that was saved without it: a layer artifact, as folder or repo id. Its "
            "sha256 must be the one that the graft records."
        ),
    ] = None,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> list[dict[str, Any]]:
    """Let a trained model label texts, answer questions, or write.

    Shows the class of each text and its probability; with --output or --json every class's probability. A question is
    given as "question, tab, text", or in a file with both columns.
    """
    with usage():
        config = FinetuneConfig(**settings)
    if bool(texts) == bool(input):
        raise UsageError('Give either texts (surgeon predict "A text.") or files (--input), or - for stdin.')
    if output is not None and output.suffix.lower() not in _FORMATS:
        raise UsageError(f"--output {output}: the suffix must be one of {', '.join(_FORMATS)}.")
    folder = model or str(ui.workspace.latest("run"))

    from layer_surgeon import finetune
    from layer_surgeon.finetune.evaluation import load_texts, trained_task

    task = trained_task(folder, config)
    wanted: Sequence[Any]
    if input:
        wanted = load_texts(input, config, task)
    else:
        wanted = [line.rstrip("\r\n") for line in sys.stdin if line.strip()] if texts == ["-"] else texts or []
        if task == "question-answering":
            wanted = [_question(text) for text in wanted]
    predictions = finetune.predict(folder, wanted, donor=donor, progress=ui.progress, **settings)
    if output is not None:
        _write(predictions, output)
        ui.progress.notice(f"{len(predictions):,} predictions are in {output}.")
    elif not ui.as_json:
        ui.table(*_SHOWN[task](predictions))
    return [prediction.as_row() for prediction in predictions]


def _question(text: str) -> tuple[str, str]:
    question, tab, context = text.partition("\t")
    if not tab:
        raise UsageError(
            f"{text!r}: a question needs the text with its answer behind it, with a tab between; or give a file with "
            "the columns question and context (--input)."
        )
    return question, context


_Shown = tuple[tuple[str, ...], list[tuple[Any, ...]]]


def _classes(predictions: Sequence[Any]) -> _Shown:
    rows = [
        (p.label, f"{p.score:.4f}", p.text if p.text_pair is None else f"{p.text} | {p.text_pair}") for p in predictions
    ]
    return ("class", "probability", "text"), rows


def _tags(predictions: Sequence[Any]) -> _Shown:
    return ("text with labels",), [
        (" ".join(f"{w}/{label or '-'}" for w, label in zip(p.words, p.labels, strict=True)),) for p in predictions
    ]


def _answers(predictions: Sequence[Any]) -> _Shown:
    return ("answer", "question"), [(p.answer or "(none)", p.question) for p in predictions]


def _written(predictions: Sequence[Any]) -> _Shown:
    return ("written", "text"), [(p.written, p.text) for p in predictions]


_SHOWN: dict[str, Callable[[Sequence[Any]], _Shown]] = {
    "text-classification": _classes,
    "token-classification": _tags,
    "question-answering": _answers,
    "seq2seq": _written,
    "causal-lm": _written,
}


def _write(predictions: Sequence[Any], path: Path) -> None:
    rows = [prediction.as_row() for prediction in predictions]
    if path.suffix.lower() == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    flat = [_flat(row) for row in rows]
    for cells in (list(flat[0]) if flat else ["text", "label", "score"], *(row.values() for row in flat)):
        writer.writerow([csv_cell(cell) for cell in cells])
    write_text(path, table.getvalue())


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One cell per column: a column for every class, lists as JSON."""
    cells = {name: value for name, value in row.items() if name != "probabilities"}
    cells |= {f"p({name})": value for name, value in row.get("probabilities", {}).items()}
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
        for name, value in cells.items()
    }
