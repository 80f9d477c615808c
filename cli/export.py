"""`surgeon export`: export a graft for other runtimes."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from layer_surgeon._format import format_bytes

from .command import DonorOption, command, new_app
from .ui import Ui

if TYPE_CHECKING:
    from layer_surgeon.graft.export import ExportResult

app = new_app()


@command(app)
def export(
    graft: Annotated[
        str | None, typer.Argument(help="Folder or repo id of a graft (default: the latest graft).")
    ] = None,
    format: Annotated[  # the option is called --format
        Literal["onnx", "torch"],
        typer.Option(help="onnx: for ONNX Runtime and similar runtimes; torch: a program of torch.export."),
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file (default: named after the graft, in the current folder)."),
    ] = None,
    donor: DonorOption = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the graft's repo.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token (default: the one of `hf auth login`).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Export a graft for other runtimes.

    The program takes batches of any size and length. It is run and compared with the graft before it is kept. Tasks
    that write text are not supported. ONNX needs the packages of the extra named export.
    """
    folder = graft or str(ui.latest("graft"))

    from layer_surgeon.graft.export import export_model  # torch and transformers take seconds; --help must not

    result = export_model(
        folder,
        output,
        format=format,
        donor=donor,
        revision=revision,
        token=token,
        force=force,
        progress=ui.progress,
    )
    if not ui.as_json:
        _show(ui, result)
    return asdict(result)


def _show(ui: Ui, result: "ExportResult") -> None:
    ui.facts(
        {
            "file": ", ".join(map(str, result.files)),
            "size": format_bytes(result.num_bytes),
            "task": result.task,
            "inputs": f"{', '.join(result.inputs)}: [batch, length], int64",
            "outputs": ", ".join(result.outputs),
            "checked": f"largest difference from the graft {result.max_difference:.1e}",
        }
    )
