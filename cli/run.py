"""`surgeon run`: hidden states of texts, one layer of the model at a time."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_surgeon._format import format_bytes
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.workspace import short_name

from .command import command, new_app, usage
from .ui import Ui

if TYPE_CHECKING:
    from layer_surgeon.run import HiddenStates

app = new_app()


@command(app, settings=RunConfig)
def run(
    source: Annotated[
        str,
        typer.Argument(help="A Hub repo id, a folder, a URL, a safetensors, PyTorch or GGUF file, or packaged:NAME."),
    ],
    texts: Annotated[
        str,
        typer.Option(help="A CSV, TSV, JSON Lines or Parquet file, a .txt file with a text per line, or a Hub id."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the states (default: in the workspace).")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repo.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token (default: the one of `hf auth login`).")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace states in the output folder, and kept layers.")
    ] = False,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Compute hidden states of texts, one layer of the model at a time.

    The model need not fit into memory. After an interruption, the same command goes on from the last complete layer.
    """
    with usage():
        config = RunConfig.from_settings(None, settings)
    from layer_surgeon.run import run_layers  # torch and transformers take seconds; --help must not

    folder = output or ui.workspace.folder("states", f"{short_name(source)}-{short_name(Path(texts).stem)}")
    states = run_layers(
        source,
        texts,
        config=config,
        output=folder,
        revision=revision,
        token=token,
        progress=ui.progress,
        workspace=ui.workspace,
        force=force,
    )
    if output is None:
        ui.workspace.set_latest("states", folder, ui.progress)
    if not ui.as_json:
        _show(ui, states)
    return _document(states)


def _show(ui: Ui, states: "HiddenStates") -> None:
    info = states.info
    facts = {
        "model": info["source"]["name"] + (f" at {info['source']['commit'][:12]}" if info["source"]["commit"] else ""),
        "texts": f"{info['num_texts']:,} ({info['num_tokens']:,} tokens)",
        "states": f"after {_name_depths(states.layers)} of {info['num_layers']} layers, {info['width']:,} wide",
        "pool": info["pool"],
        "read": format_bytes(info["num_bytes_read"]),
    }
    if info["score"]:
        facts["perplexity"] = f"{states.perplexity:.2f}"
    ui.facts({**facts, "folder": states.path})


def _name_depths(depths: tuple[int, ...]) -> str:
    if len(depths) > 2 and depths == tuple(range(depths[0], depths[-1] + 1)):
        return f"{depths[0]} to {depths[-1]}"
    return ", ".join(map(str, depths))


def _document(states: "HiddenStates") -> dict[str, Any]:
    info = {name: value for name, value in states.info.items() if name not in ("kind", "identity")}
    return {"path": states.path, **info, **({"perplexity": states.perplexity} if info["score"] else {})}
