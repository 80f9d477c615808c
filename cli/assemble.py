"""`surgeon assemble`: make a model out of layers of other models."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from layer_surgeon._format import format_bytes, format_count
from layer_surgeon.assemble import AssembledModel, AssemblyPlan, plan_assembly
from layer_surgeon.assemble.assembly import write_model
from layer_surgeon.assemble.assembly_plan import Recipe
from layer_surgeon.assemble.recipe_files import read_recipe

from .command import command, new_app, only_verify
from .errors import UsageError
from .ui import Ui, escape_text

app = new_app()

_PARTS = "Layers"
_SHARD_SIZE = "5GB"


@command(app)
def assemble(
    source: Annotated[
        str | None,
        typer.Argument(help="A Hub repo id, a folder, a URL, a safetensors, PyTorch or GGUF file, or packaged:NAME."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", "-l", help='Layers in the order in which they run: "0:16,8:24".', rich_help_panel=_PARTS
        ),
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Keep only these layers: 0:9.", rich_help_panel=_PARTS)] = None,
    drop: Annotated[str | None, typer.Option(help="Keep all layers but these: 21:29.", rich_help_panel=_PARTS)] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(
            help="Take a layer from another model: 12=OTHER:12 makes layer 12 of OTHER layer 12 of the new model. "
            "Repeatable.",
            rich_help_panel=_PARTS,
        ),
    ] = None,
    scale: Annotated[
        list[str] | None,
        typer.Option(
            help="Scale what a layer of the new model adds to the hidden states: 12=0.5. Repeatable.",
            rich_help_panel=_PARTS,
        ),
    ] = None,
    expand: Annotated[
        str | None,
        typer.Option(
            help="Insert copies that add nothing at first: every:4 puts one after each 4 layers.",
            rich_help_panel=_PARTS,
        ),
    ] = None,
    text_only: Annotated[
        bool,
        typer.Option("--text-only", help="Take the language model out of a vision-language checkpoint."),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="A recipe for several sources (YAML), or mergekit's with merge_method passthrough."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the new model (default: in the workspace).")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of SOURCE on the Hub.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token (default: the one of `hf auth login`).")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Convert to this dtype (default: keep the bytes; a GGUF file becomes float32)."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest size of a file of weights.")] = _SHARD_SIZE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be read, but read no weights.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check the assembled model SOURCE against its sha256s.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the assembled model in the output folder.")] = False,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Make a model out of layers of other models, reading only their bytes."""
    if verify:
        parts = (layers, keep, drop, replace, scale, expand, text_only, config)
        only_verify((*parts, output, revision, token, dtype, max_shard_size != _SHARD_SIZE, dry_run, force))
        return _verify(ui, source)
    settings = {
        "layers": layers,
        "keep": keep,
        "drop": drop,
        "replace": replace or None,
        "scale": scale or None,
        "expand": expand,
        "revision": revision,
        "text_only": text_only or None,
        "dtype": dtype,
    }
    plan = plan_assembly(_recipe(source, config), max_shard_size=max_shard_size, token=token, **settings)
    if dry_run:
        if not ui.as_json:
            _show_plan(ui, plan)
        return _plan_document(plan)
    model = write_model(
        plan,
        output,
        progress=ui.progress,
        workspace=ui.workspace,
        force=force,
    )
    if not ui.as_json:
        _show(ui, model)
    return _document(model)


def _recipe(source: str | None, config: Path | None) -> Recipe:
    if (source is None) == (config is None):
        raise UsageError(
            "Name a model to take layers from, or a recipe with --config, but not both. Example: "
            "surgeon assemble google/gemma-3-270m --keep 0:9"
        )
    return read_recipe(config) if config is not None else str(source)


def _verify(ui: Ui, folder: str | None) -> dict[str, Any]:
    if folder is None:
        raise UsageError("Name the folder of the assembled model to verify.")
    model = AssembledModel.open(folder)
    model.verify()
    if not ui.as_json:
        ui.line(f"All {len(model.record['sha256'])} tensors are byte for byte as they were assembled.")
    return _document(model) | {"verified": True}


def _show_plan(ui: Ui, plan: AssemblyPlan) -> None:
    rows = [
        (position, layer.layer, layer.source, _change(layer.silent, layer.scale))
        for position, layer in enumerate(plan.layers)
    ]
    ui.table(("layer", "its layer", "source", "change"), rows)
    num_bytes_between = plan.num_bytes_read - plan.num_bytes
    ui.facts(
        {
            "layers": len(plan.layers),
            "parameters": format_count(plan.num_parameters),
            "read": f"{plan.num_bytes:,} bytes ({format_bytes(plan.num_bytes)}{_of(plan.num_source_bytes)})"
            + (f", and {num_bytes_between:,} between them" if num_bytes_between else ""),
            "requests": plan.num_requests,
            "written": f"{plan.num_out_bytes:,} bytes ({plan.dtype}) in {len(plan.shards)} files",
        }
    )
    for note in plan.notes:
        ui.progress.notice(note)


def _plan_document(plan: AssemblyPlan) -> dict[str, Any]:
    return {
        "sources": [{"name": source.name, "commit": source.checkpoint.commit} for source in plan.sources],
        "head": plan.head.name,
        "layers": [asdict(layer) for layer in plan.layers],
        "dtype": plan.dtype,
        "num_parameters": plan.num_parameters,
        "num_bytes": plan.num_bytes,
        "num_bytes_read": plan.num_bytes_read,
        "num_source_bytes": plan.num_source_bytes,
        "num_out_bytes": plan.num_out_bytes,
        "num_requests": plan.num_requests,
        "files": [{"name": shard.file, "num_bytes": shard.num_out_bytes} for shard in plan.shards],
        "config": plan.config,
    }


def _show(ui: Ui, model: AssembledModel) -> None:
    record = model.record
    sources = [
        source["name"] + (f" at {source['commit'][:12]}" if source["commit"] else "") for source in record["sources"]
    ]
    ui.facts(
        {
            "layers": len(record["layers"]),
            "of": ", ".join(sources),
            "parameters": format_count(record["num_parameters"]),
            "size": f"{format_bytes(model.num_bytes)} ({record['dtype']})",
            "read": format_bytes(record["num_bytes_read"]) + _of(record["num_source_bytes"]),
            "folder": model.path,
        }
    )
    if record["changed"]:
        ui.line("Layers that were cut, stacked or swapped cost quality: train the model before you use it.")
    ui.line(f"Next: [bold]surgeon finetune {escape_text(shlex.quote(str(model.path)))}[/]")


def _document(model: AssembledModel) -> dict[str, Any]:
    record = {key: value for key, value in model.record.items() if key != "sha256"}
    return {"path": model.path, "num_bytes": model.num_bytes, "config": model.config} | record


def _of(num_source_bytes: int | None) -> str:
    return "" if num_source_bytes is None else f" of {format_bytes(num_source_bytes)}"


def _change(silent: bool, scale: float) -> str:
    if silent:
        return "adds nothing at first"
    return "-" if scale == 1 else f"scaled by {scale:g}"
