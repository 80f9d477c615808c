"""`surgeon inspect`: show what is in a checkpoint."""

from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any

import typer

from layer_surgeon._format import format_bytes, format_count
from layer_surgeon.checkpoint import Checkpoint, open_checkpoint
from layer_surgeon.checkpoint.quantization import is_fp8
from layer_surgeon.checkpoint.summary import CheckpointSummary, TensorGroup, summarize

from .command import command, new_app
from .ui import Ui, escape_text

app = new_app()


@command(app)
def inspect(
    source: Annotated[
        str, typer.Argument(help="A Hub repo id, a folder, a URL, or a safetensors, PyTorch or GGUF file.")
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repo.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token (default: the one of `hf auth login`).")] = None,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Show a checkpoint's layers, dtypes, sizes and licence.

    Reads the config, the index, the file headers and the model card, but no weights.
    """
    checkpoint = open_checkpoint(source, revision=revision, token=token)
    summary = summarize(checkpoint)
    if not ui.as_json:
        _show(ui, checkpoint, summary)
    return {
        "source": checkpoint.source.name,
        "kind": checkpoint.source.kind,
        "commit": checkpoint.commit,
        "format": checkpoint.format,
        "model_type": checkpoint.model_type,
        "num_layers": checkpoint.num_layers,
        "layer_prefix": checkpoint.layer_prefix(0),
        "quantization": checkpoint.quantization or checkpoint.table.packing,
        "license": summary.licence.get("license"),
        "license_name": summary.licence.get("license_name"),
        "license_link": summary.licence.get("license_link"),
        "license_files": list(summary.licence_files),
        "notes": list(checkpoint.table.notes),
        "whole": asdict(summary.whole),
        "rest": asdict(summary.rest),
        "layers": [{"index": index, **asdict(layer)} for index, layer in enumerate(summary.layers)],
        "config": checkpoint.config,
    }


def _show(ui: Ui, checkpoint: Checkpoint, summary: CheckpointSummary) -> None:
    whole = summary.whole
    facts = {
        "source": checkpoint.source.name + (f" at {checkpoint.commit}" if checkpoint.commit else ""),
        "family": checkpoint.model_type,
        "format": f"{checkpoint.format}, {len(whole.files)} file{'s' if len(whole.files) > 1 else ''}",
        "size": f"{format_bytes(whole.num_bytes)}, {format_count(whole.num_parameters)} parameters, "
        f"{', '.join(whole.dtypes)}",
        "layers": f"{checkpoint.num_layers}, in {checkpoint.layer_prefix(0).removesuffix('.0.')}",
    }
    if checkpoint.quantization:
        advice = "extract with --dtype bfloat16" if is_fp8(checkpoint.config) else "its layers can't be extracted"
        facts["quantised"] = f"{checkpoint.quantization}; {advice}"
    elif checkpoint.table.packing:
        facts["quantised"] = f"{checkpoint.table.packing}; layers are extracted as float32, or as --dtype says"
    facts["licence"] = _licence(summary)
    ui.facts(facts)
    for note in checkpoint.table.notes:
        ui.line(escape_text(note))
    rows = []
    for layer, members in groupby(enumerate(summary.layers), key=lambda numbered_layer: numbered_layer[1]):
        indices = [index for index, _ in members]
        first, last = indices[0], indices[-1]
        rows.append(_row(str(first) if first == last else f"{first} to {last}", layer, each=first != last))
    rows.append(_row("the rest", summary.rest, each=False))
    ui.table(("layer", "tensors", "parameters", "bytes", "dtypes", "files"), rows)


def _licence(summary: CheckpointSummary) -> str:
    stated = [summary.licence[key] for key in ("license", "license_name", "license_link") if key in summary.licence]
    files = f"see {', '.join(summary.licence_files)}" if summary.licence_files else ""
    return "; ".join(filter(None, [", ".join(stated), files])) or "not stated"


def _row(name: str, group: TensorGroup, *, each: bool) -> tuple[str, ...]:
    return (
        name,
        str(group.num_tensors),
        format_count(group.num_parameters) + (" each" if each else ""),
        format_bytes(group.num_bytes) + (" each" if each else ""),
        ", ".join(group.dtypes),
        ", ".join(group.files),
    )
