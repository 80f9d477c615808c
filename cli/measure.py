"""`surgeon measure`: show what each layer of a model does to the hidden states of texts."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from layer_surgeon.run.settings import RunConfig

from .command import command, new_app, nothing_kept, usage
from .errors import UsageError
from .ui import Ui

if TYPE_CHECKING:
    from layer_surgeon.run.layer_sums import LayerMeasure
    from layer_surgeon.run.measures import LayerMeasures

app = new_app()

_COLUMNS = {
    "block influence": "block_influence",
    "angular distance": "angular_distance",
    "RMS in": "rms_in",
    "RMS added": "rms_added",
    "loudness": "loudness",
    "massive share": "massive_share",
    "linear R²": "linear_r2",
    "linear R² of added": "linear_r2_added",
}
_WITHOUT = ("layers", "pool", "score", "keep_layers", "workers", "executor", "address")


@command(app, settings=RunConfig, without=_WITHOUT, panel="Settings of the run")
def measure(
    source: Annotated[
        str,
        typer.Argument(
            help="A Hub repo id, a folder, a URL, a safetensors, PyTorch or GGUF file, packaged:NAME, or the folder of "
            "a run with --pool none."
        ),
    ],
    texts: Annotated[
        str | None,
        typer.Option(
            "--texts",
            "-t",
            help="A file (CSV, TSV, JSONL, JSON, Parquet, txt) or a Hub data set. Not for a run's folder.",
        ),
    ] = None,
    block: Annotated[int | None, typer.Option(help="Also measure each block of so many neighbouring layers.")] = None,
    suggest_drop: Annotated[
        int | None, typer.Option("--suggest-drop", help="Print the command that drops so many layers.")
    ] = None,
    drop_by: Annotated[
        Literal["influence", "block"],
        typer.Option(
            help="How --suggest-drop chooses: the layers with the smallest block influence, or the block with the "
            "smallest angular distance."
        ),
    ] = "influence",
    linear: Annotated[bool, typer.Option(help="Fit linear maps from input to output, which takes memory.")] = True,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a heat map to this file: .html, .svg or .png.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repo.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token (default: the one of `hf auth login`).")] = None,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Measure what each layer does to the hidden states of texts.

    All texts go through layer 0, then all through layer 1, so memory holds one layer and one batch.
    """
    with usage():
        RunConfig(**settings)
    if suggest_drop is not None and suggest_drop < 1:
        raise UsageError(f"--suggest-drop is {suggest_drop}; it must be 1 or more.")
    if suggest_drop is not None and drop_by == "block" and suggest_drop > 1:
        if block not in (None, suggest_drop):
            raise UsageError(
                f"--suggest-drop {suggest_drop} --drop-by block needs --block {suggest_drop}, not {block}."
            )
        block = suggest_drop
    if output is not None:
        from layer_surgeon.report.layer_heat_map import check_picture

        check_picture(output)

    # torch and transformers take seconds; --help must not
    from layer_surgeon.run.measures import measure_layers
    from layer_surgeon.run.states import is_states

    if texts is None and not is_states(source):
        raise UsageError("Name a file with --texts, or the folder of a run with --pool none instead of a model.")

    # Before the measurement, which may take hours.
    drop_options = (
        "" if suggest_drop is None else _drop_options(source, suggest_drop, settings.get("dtype"), revision, token)
    )
    with nothing_kept():
        measures = measure_layers(
            source,
            texts,
            block=block,
            linear=linear,
            revision=revision,
            token=token,
            progress=ui.progress,
            **settings,
        )
    # The table comes first: it took long, and should not be lost if what follows fails.
    if not ui.as_json:
        _show(ui, measures)
    dropped = None if suggest_drop is None else measures.suggest_drop(suggest_drop, drop_by)
    command_line = None if dropped is None else _drop_command(measures, dropped) + drop_options
    if output is not None:
        _draw(measures, output)
    if not ui.as_json:
        ui.facts({} if output is None else {"picture": output})
        ui.facts({} if command_line is None else {"to drop them": command_line})
    return asdict(measures) | {
        "suggested_drop": None if dropped is None else list(dropped),
        "command": command_line,
        "picture": output,
    }


def _drop_options(source: str, count: int, dtype: str | None, revision: str | None, token: str | None) -> str:
    """Check the number of layers to drop, and return the options that dropping layers of this model needs."""
    from layer_surgeon.assemble.text_only import is_multimodal
    from layer_surgeon.checkpoint import open_checkpoint
    from layer_surgeon.run.measures import check_num_dropped
    from layer_surgeon.run.states import HiddenStates, is_states

    if is_states(source):
        check_num_dropped(count, int(HiddenStates.open(source).info["num_layers"]))
        return ""
    checkpoint = open_checkpoint(source, revision=revision, token=token)
    check_num_dropped(count, checkpoint.num_layers)
    text_only = " --text-only" if is_multimodal(checkpoint.config) else ""
    return text_only + (f" --dtype {dtype}" if checkpoint.quantization and dtype else "")


def _drop_command(measures: "LayerMeasures", dropped: tuple[int, ...]) -> str:
    from layer_surgeon.run.measures import format_layers

    is_part_of_repo = measures.commit is not None and measures.source.count("/") > 1
    source = f"hf://{measures.source}" if is_part_of_repo else measures.source
    at_revision = "" if measures.commit is None else f" --revision {measures.commit}"
    return f"surgeon assemble {shlex.quote(source)}{at_revision} --drop {format_layers(dropped)}"


def _show(ui: Ui, measures: "LayerMeasures") -> None:
    header = [name for name, field in _COLUMNS.items() if any(getattr(m, field) is not None for m in measures.layers)]
    ui.table(("layer", *header), [_row(measure, header) for measure in measures.layers])
    if measures.blocks:
        title = f"Blocks of {measures.block} layers"
        ui.table(("layers", *header), [_row(measure, header) for measure in measures.blocks], title=title)
    texts = f"{measures.num_texts:,}, with {measures.num_tokens:,} tokens"
    ui.facts({"model": measures.source, "texts": texts})


def _name(measure: "LayerMeasure") -> str:
    last = measure.layer + measure.num_layers - 1
    return str(last) if measure.num_layers == 1 else f"{measure.layer} to {last}"


def _row(measure: "LayerMeasure", header: list[str]) -> tuple[str, ...]:
    values = [getattr(measure, _COLUMNS[name]) for name in header]
    return (_name(measure), *("-" if value is None else f"{value:.4g}" for value in values))


def _draw(measures: "LayerMeasures", path: Path) -> None:
    """Draw each measure as a row; its colours go from its smallest value to its largest."""
    from layer_surgeon.report.layer_heat_map import LayerTile, layer_heat_map, write_picture

    tiles = []
    for name, field in _COLUMNS.items():
        values = {_name(measure): getattr(measure, field) for measure in measures.layers}
        known = [value for value in values.values() if value is not None]
        span = max(known) - min(known) if known else 0.0
        for column, value in values.items():
            share = None if value is None else (value - min(known)) / span if span else 0.0
            tiles.append(LayerTile(row=name, column=column, value=share))
    columns = [_name(measure) for measure in measures.layers]
    title = f"The layers of {Path(measures.source).name}"
    legend = "from the smallest to the largest value of each row"
    chart = layer_heat_map(tiles, list(_COLUMNS), columns, title=title, legend=legend, log=False)
    write_picture(chart, path, title=title)
