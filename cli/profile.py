"""`surgeon profile`: show what a graft costs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from layer_surgeon._format import format_bytes, format_count, format_seconds
from layer_surgeon.graft.config import GraftConfig

from .command import command, new_app, usage
from .ui import Ui

if TYPE_CHECKING:
    from layer_surgeon.cost.flops import Macs
    from layer_surgeon.cost.profile import GraftProfile, ModelProfile

app = new_app()


@command(app, settings=GraftConfig, panel="Graft settings, if MODEL is a host (default: the paper's)")
def profile(
    model: Annotated[
        str | None,
        typer.Argument(help="A graft or a small model: a folder or a Hub repo id (default: the latest graft)."),
    ] = None,
    donor: Annotated[
        str | None,
        typer.Option(
            "--donor", "-d", help="The layer to put into a small model: a layer artifact or a language model."
        ),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Which layer of a language model; -1 is the last. [dim](default: -1)[/]")
    ] = None,
    batch: Annotated[int, typer.Option(help="Texts in a batch.")] = 32,
    length: Annotated[int, typer.Option(help="Tokens of each text.")] = 100,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Number format of everything except the donor layer."),
    ] = "float32",
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure time and peak memory, with random weights.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Device for --measure (default: cuda if there is such a GPU).")
    ] = None,
    repeats: Annotated[int, typer.Option(help="How many times each step is timed.")] = 3,
    token: Annotated[str | None, typer.Option(help="Hub token (default: the one of `hf auth login`).")] = None,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Show what a graft costs: parameters, computation, memory, time.

    The host alone is shown for comparison. Only config.json is read. The weights don't have to be on this machine.
    """
    with usage():
        config = GraftConfig(**settings) if settings else None
    target = model or str(ui.latest("graft"))

    from layer_surgeon.cost.measure import Workload  # torch and transformers take seconds; --help must not
    from layer_surgeon.cost.profile import profile_graft

    with usage():
        workload = Workload(batch=batch, length=length, dtype=dtype, device=device, repeats=repeats)
    result = profile_graft(target, donor, layer=layer, config=config, workload=workload, measured=measure, token=token)
    if not ui.as_json:
        _show(ui, result)
    return _document(result)


def _show(ui: Ui, result: "GraftProfile") -> None:
    workload = result.workload
    ui.facts(
        {
            "host": result.host,
            "donor": result.donor or "none: the host alone",
            "workload": f"{workload.batch} x {workload.length} tokens, {workload.dtype}",
        }
    )
    model = result.grafted or result.alone
    rows = [
        (
            part.name,
            format_count(part.parameters),
            format_count(part.trained),
            format_count(part.parameters - part.trained),
            format_bytes(part.num_bytes),
            *_macs(part.macs),
        )
        for part in model.parts
    ]
    rows.append(_total("all", model))
    if result.grafted is not None:
        rows.append(_total("host alone", result.alone))
    header = ("part", "parameters", "trained", "frozen", "weights", "linear", "attention", "rest", "MACs")
    ui.table(header, rows, title="One forward pass, in multiply-accumulates")
    _show_graft(ui, result)
    _show_costs(ui, result)


def _show_graft(ui: Ui, result: "GraftProfile") -> None:
    if result.added is None:
        return
    positions = "one position per text" if result.positions == 1 else f"{result.positions} positions per text"
    rows = [("done", *_macs(result.added))]
    if result.full is not None and result.per_token is not None:
        rows.append((f"full computation, {positions}", *_macs(result.full)))
        rows.append(("full computation, every token", *_macs(result.per_token)))
    ui.table(("projections and donor", "linear", "attention", "rest", "MACs"), rows)


def _show_costs(ui: Ui, result: "GraftProfile") -> None:
    models = [("host alone", result.alone)] + ([("grafted", result.grafted)] if result.grafted is not None else [])
    rows: dict[str, list[Any]] = {"MACs of a training step": [model.training_macs for _, model in models]}
    formatters: dict[str, Any] = {"MACs of a training step": _count}
    if result.alone.measured is not None:
        for name, field, formatter in (
            ("forward", "forward_seconds", format_seconds),
            ("training step", "training_seconds", format_seconds),
            ("peak memory, forward", "forward_peak_bytes", format_bytes),
            ("peak memory, training", "training_peak_bytes", format_bytes),
        ):
            rows[name] = [getattr(model.measured, field) for _, model in models]
            formatters[name] = formatter
    table = [
        (name, *map(formatters[name], values), *([f"{values[1] / values[0]:.3f} x"] if len(values) > 1 else []))
        for name, values in rows.items()
    ]
    header = ["cost", *(name for name, _ in models), *(["ratio"] if len(models) > 1 else [])]
    title = None if result.alone.measured is None else f"Measured on {result.alone.measured.device}, random weights"
    ui.table(header, table, title=title)
    if result.alone.measured is None:
        ui.line("For time and peak memory, add --measure.")


def _total(name: str, model: "ModelProfile") -> tuple[str, ...]:
    return (
        name,
        format_count(model.parameters),
        format_count(model.trained),
        format_count(model.parameters - model.trained),
        format_bytes(model.num_bytes),
        *_macs(model.macs),
    )


def _macs(macs: "Macs") -> tuple[str, ...]:
    return tuple(map(_count, (macs.linear, macs.attention, macs.rest, macs.total)))


def _count(macs: int) -> str:
    return format_count(macs, ".2f", units=("k", "M", "G"))


def _document(result: "GraftProfile") -> dict[str, Any]:
    return {
        "host": result.host,
        "donor": result.donor,
        "workload": asdict(result.workload),
        "alone": _model_document(result.alone),
        "grafted": None if result.grafted is None else _model_document(result.grafted),
        "graft": None
        if result.added is None
        else {
            "positions": result.positions,
            "macs": _macs_document(result.added),
            "full_macs": None if result.full is None else _macs_document(result.full),
            "per_token_macs": None if result.per_token is None else _macs_document(result.per_token),
        },
    }


def _model_document(model: "ModelProfile") -> dict[str, Any]:
    return {
        "parameters": model.parameters,
        "trained": model.trained,
        "num_bytes": model.num_bytes,
        "macs": _macs_document(model.macs),
        "training_macs": model.training_macs,
        "parts": {
            part.name: {
                "parameters": part.parameters,
                "trained": part.trained,
                "num_bytes": part.num_bytes,
                "macs": _macs_document(part.macs),
            }
            for part in model.parts
        },
        "measured": None if model.measured is None else asdict(model.measured),
    }


def _macs_document(macs: "Macs") -> dict[str, int]:
    return {**asdict(macs), "total": macs.total}
