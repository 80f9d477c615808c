"""`surgeon diff`: compare two checkpoints."""

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_surgeon._format import format_bytes, list_names

from .command import command, new_app, nothing_kept
from .ui import Ui

if TYPE_CHECKING:
    from layer_surgeon.run.difference import CheckpointDifference, GroupDifference, TensorDifference

app = new_app()

_MISSING = "-"
# In the heat map. An exclamation mark means that a number isn't finite.
_SIGNS = {"only in A": "A", "only in B": "B", "different shape": "#"}


@command(app)
def diff(
    a: Annotated[
        str,
        typer.Argument(
            help="A Hub repo id, a folder, a URL, a safetensors, PyTorch or GGUF file, packaged:NAME, or the folder of "
            "a layer artifact."
        ),
    ],
    b: Annotated[str, typer.Argument(help="The checkpoint to compare it with.")],
    revision_a: Annotated[str | None, typer.Option(help="Branch, tag or commit of A, if it is a Hub repo.")] = None,
    revision_b: Annotated[str | None, typer.Option(help="Branch, tag or commit of B, if it is a Hub repo.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token (default: the one of `hf auth login`).")] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Show every tensor that differs.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a heat map to this file: .html, .svg or .png.")
    ] = None,
    hashes: Annotated[
        bool,
        typer.Option(
            "--hashes/--no-hashes",
            help="Don't read tensors that are equal according to the Hub, or to the record of a layer artifact or an "
            "assembled model.",
        ),
    ] = True,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Compare two checkpoints, layer by layer and tensor by tensor.

    Files with the same hash on the Hub are not read. Everything else is read once, in bounded memory.
    """
    from layer_surgeon.run.difference import diff_checkpoints  # imports numpy

    if output is not None:
        from layer_surgeon.report.layer_heat_map import check_picture

        check_picture(output)
    with nothing_kept():
        difference = diff_checkpoints(
            a, b, revision_a=revision_a, revision_b=revision_b, token=token, use_hashes=hashes, progress=ui.progress
        )
    # The table comes first: it took long, and should not be lost if the picture fails.
    if not ui.as_json:
        _show(ui, difference, tensors)
    if output is not None:
        _draw(difference, output)
        if not ui.as_json:
            ui.facts({"picture": output})
    return asdict(difference) | {"equal": difference.equal, "picture": output}


def _show(ui: Ui, difference: "CheckpointDifference", with_tensors: bool) -> None:
    differing = [group for group in difference.groups if not group.equal]
    rows = [_row(group) for group in differing]
    if rows:
        header = ("layer", "relative L2", "cosine", "largest difference", "tensors", "most changed tensor")
        ui.table(header, rows)
    if with_tensors and differing:
        tensor_rows = [
            (_name(group), tensor.name, tensor.status, *_numbers(tensor), _change(tensor.dtypes), _shapes(tensor))
            for group in differing
            for tensor in group.tensors
            if tensor.status != "equal"
        ]
        columns = ("layer", "tensor", "status", "relative L2", "cosine", "largest difference", "dtype", "shape")
        ui.table(columns, tensor_rows)
    ui.headline(_sentence(difference))
    ui.facts({"A": difference.a, "B": difference.b, "read": format_bytes(difference.bytes_read)})


def _sentence(difference: "CheckpointDifference") -> str:
    if difference.equal:
        return "All tensors are equal."
    layers = [str(group.layer) for group in difference.layers if not group.equal]
    parts = []
    if layers:
        noun = "layer" if len(difference.layers) == 1 else "layers"
        subject = "layer" if len(layers) == 1 else "layers"
        parts.append(f"{len(layers)} of {len(difference.layers)} {noun} differ ({subject} {list_names(layers, 12)})")
    else:
        parts.append("All layers are equal")
    if difference.rest.tensors:
        parts.append(f"the rest {'is equal' if difference.rest.equal else 'differs'}")
    return f"{'; '.join(parts)}."


def _name(group: "GroupDifference") -> str:
    return "rest" if group.layer is None else str(group.layer)


def _row(group: "GroupDifference") -> tuple[str, ...]:
    counts = Counter(tensor.status for tensor in group.tensors)
    changes = [(change, tensor.name) for tensor in group.tensors if (change := _relative_change(tensor))]
    most_changed = "{1} ({0:.3g})".format(*max(changes)) if changes else _MISSING
    return (
        _name(group),
        *_numbers(group),
        ", ".join(f"{counts[status]} {status}" for status in sorted(counts)),
        most_changed,
    )


def _numbers(result: "GroupDifference | TensorDifference") -> tuple[str, str, str]:
    missing = "not finite" if _is_not_finite(result) else _MISSING
    values = ((result.relative_l2, ".3g"), (result.cosine, ".6f"), (result.max_abs, ".3g"))
    relative_l2, cosine, max_abs = (missing if value is None else format(value, spec) for value, spec in values)
    return relative_l2, cosine, max_abs


def _is_not_finite(result: "GroupDifference | TensorDifference") -> bool:
    """Whether the weights have NaN or infinity. Without, a number may be missing because A or B is zero."""
    return result.was_compared and result.max_abs is None


def _relative_change(tensor: "TensorDifference") -> float | None:
    """The relative difference; infinite if A is zero and B isn't."""
    return math.inf if tensor.relative_l2 is None and tensor.max_abs else tensor.relative_l2


def _change(values: tuple[str | None, str | None]) -> str:
    before, after = (value or _MISSING for value in values)
    return before if before == after else f"{before} -> {after}"


def _shapes(tensor: "TensorDifference") -> str:
    before, after = (None if shape is None else "x".join(map(str, shape)) or "scalar" for shape in tensor.shapes)
    return _change((before, after))


def _sign(tensor: "TensorDifference") -> str:
    return "!" if _is_not_finite(tensor) else "∞" if _relative_change(tensor) == math.inf else ""


def _draw(difference: "CheckpointDifference", path: Path) -> None:
    from layer_surgeon.report.layer_heat_map import LayerTile, layer_heat_map, write_picture

    tiles = [
        LayerTile(
            row=tensor.name,
            column=_name(group),
            value=tensor.relative_l2,
            sign=_SIGNS.get(tensor.status) or _sign(tensor),
        )
        for group in difference.groups
        for tensor in group.tensors
    ]
    rows = list(dict.fromkeys(tile.row for tile in tiles))
    columns = list(dict.fromkeys(tile.column for tile in tiles))
    title = f"{Path(difference.a).name} and {Path(difference.b).name}"
    chart = layer_heat_map(tiles, rows, columns, title=title, legend="relative L2 difference", log=True)
    write_picture(chart, path, title=title)
