"""`surgeon extract`: extract layers from a checkpoint."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from layer_surgeon._format import format_bytes
from layer_surgeon.checkpoint import Checkpoint, open_checkpoint
from layer_surgeon.extract import ExtractionPlan, LayerArtifact, extract_layer
from layer_surgeon.extract.extract import plan_stack

from .command import command, new_app, only_verify
from .ui import Ui

app = new_app()


@command(app)
def extract(
    source: Annotated[
        str,
        typer.Argument(help="A Hub repo id, a folder, a URL, a safetensors, PyTorch or GGUF file, or packaged:NAME."),
    ],
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer", "-l", help="Which layer: 31, -1 (the last), or 30:32 (30 and 31). Repeat it for several."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the layer artifact (default: in the workspace).")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repo.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token (default: the one of `hf auth login`).")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Convert to this dtype (default: keep the donor's bytes)."),
    ] = None,
    embeddings: Annotated[
        bool,
        typer.Option(
            "--embeddings", help="Also take what acts before layer 0, so that the first layers (--layer 0:9) read text."
        ),
    ] = False,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            metavar="HOST", help="Make the table of tokens for this host's vocabulary, and read only the rows it needs."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be read, but read no weights.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check the layer artifact SOURCE against its sha256s.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the contents of the output folder.")] = False,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Extract layers from a checkpoint, reading only their bytes.

    The default is the last layer.
    """
    if verify:
        only_verify((layer, output, revision, token, dtype, embeddings, vocabulary, dry_run, force))
        return _verify(ui, source)
    layers = layer or ["-1"]
    if dry_run:
        checkpoint = open_checkpoint(source, revision=revision, token=token)
        plan = plan_stack(checkpoint, layers, dtype=dtype, embeddings=embeddings, vocabulary=vocabulary, token=token)
        return _show_plan(ui, checkpoint, plan)
    artifact = extract_layer(
        source,
        layer=layers,
        output=output,
        revision=revision,
        token=token,
        dtype=dtype,
        progress=ui.progress,
        workspace=ui.workspace,
        force=force,
        embeddings=embeddings,
        vocabulary=vocabulary,
    )
    # A folder of the user's own is the latest layer too, as with `graft` and `finetune`.
    ui.workspace.set_latest("layer", artifact.path, ui.progress)
    if not ui.as_json:
        _show(ui, artifact)
    return _document(artifact)


def _verify(ui: Ui, folder: str) -> dict[str, Any]:
    artifact = LayerArtifact.open(folder)
    artifact.verify()
    if not ui.as_json:
        how = "saved after a change" if artifact.config["source"].get("changed") else "extracted"
        ui.line(f"All {len(artifact.recorded)} tensors are byte for byte as they were {how}.")
    return _document(artifact) | {"verified": True}


def _show_plan(ui: Ui, checkpoint: Checkpoint, plan: ExtractionPlan) -> dict[str, Any]:
    if not ui.as_json:
        rows = [(t.name, t.dtype, "x".join(map(str, t.shape)), format_bytes(t.num_bytes), t.file) for t in plan.tensors]
        ui.table(("tensor", "dtype", "shape", "bytes", "file"), rows)
        num_bytes_between = plan.num_bytes_read - plan.num_bytes
        ui.facts(
            {
                "tensors": len(plan.tensors),
                "bytes": f"{plan.num_bytes:,} ({format_bytes(plan.num_bytes)})"
                + (f", and {num_bytes_between:,} between them" if num_bytes_between else ""),
                "requests": plan.num_requests,
                "files": len(plan.files),
            }
        )
    return {
        "source": checkpoint.source.name,
        "commit": checkpoint.commit,
        "layer_indices": list(plan.layer_indices),
        "num_bytes": plan.num_bytes,
        "num_bytes_read": plan.num_bytes_read,
        "num_requests": plan.num_requests,
        "files": list(plan.files),
        "tensors": [
            {
                "name": t.name,
                "dtype": t.dtype,
                "shape": t.shape,
                "file": t.file,
                "offset": t.offset,
                "num_bytes": t.num_bytes,
            }
            for t in plan.tensors
        ],
    }


def _show(ui: Ui, artifact: LayerArtifact) -> None:
    donor = artifact.config["source"]
    ui.facts(
        {
            "layer": ", ".join(map(str, artifact.layer_indices)),
            **_embeddings(artifact),
            "of": donor["name"] + (f" at {donor['commit'][:12]}" if donor.get("commit") else ""),
            "size": f"{format_bytes(artifact.num_bytes)} ({artifact.config['dtype']})",
            "sha256": artifact.sha256,
            "folder": artifact.path,
        }
    )
    # Only a donor from the Hub shows that a host can be downloaded from it.
    is_from_hub = donor.get("commit") is not None and not donor["name"].startswith("packaged:")
    host = "bert-base-uncased" if is_from_hub else "HOST"
    hint = "" if is_from_hub else " (HOST: a folder, packaged:all-MiniLM-L6-v2, or a Hub id such as bert-base-uncased)"
    ui.line(f"Next: [bold]surgeon graft {host}[/]{hint}")


def _embeddings(artifact: LayerArtifact) -> dict[str, Any]:
    embeddings = artifact.config.get("embeddings")
    if not embeddings:
        return {}
    vocabulary = embeddings.get("vocabulary")
    if vocabulary is None:
        return {"embeddings": "the donor's"}
    tokens = f"{vocabulary['size']:,} tokens of {vocabulary['name']}"
    return {"embeddings": f"for {tokens}, from {vocabulary['donor_rows']:,} of the donor's rows"}


def _document(artifact: LayerArtifact) -> dict[str, Any]:
    return {
        "path": artifact.path,
        "layer_indices": list(artifact.layer_indices),
        "embeddings": artifact.config.get("embeddings"),
        "dtype": artifact.config.get("dtype"),
        "num_bytes": artifact.num_bytes,
        "sha256": artifact.sha256,
        "source": {key: value for key, value in artifact.config["source"].items() if key != "tensors"},
    }
