"""`surgeon sweep`: train with each layer of the donor, pair of layers or site, to see which is best."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import command, new_app, usage
from .compare import make_content, run_plan
from .errors import UsageError
from .report import write_sweep_picture
from .set_option import SetOption, StudyCommand, parse_settings
from .studies import (
    AddressOption,
    BaseOption,
    Candidates,
    CandidatesOption,
    DonorArgument,
    DryRunOption,
    ExecutorOption,
    HostOption,
    LayersOption,
    OutputOption,
    Scale,
    ScaleOption,
    WorkersOption,
)
from .ui import Ui

if TYPE_CHECKING:
    from layer_surgeon.study.plan import StudyPlan

app = new_app()


@command(app, command_class=StudyCommand)
def sweep(
    donor: DonorArgument = None,
    layers: LayersOption = None,
    candidates: CandidatesOption = "layers",
    host: HostOption = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--dataset", "-d", help="A data set. Repeat it for several. [dim](default: sst2)[/]"),
    ] = None,
    config: BaseOption = None,
    scale: ScaleOption = "full",
    num_seeds: Annotated[
        int | None, typer.Option("--num-seeds", help="Runs of each candidate. [dim](default: 5)[/]")
    ] = None,
    assignments: SetOption = None,
    output: OutputOption = None,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    dry_run: DryRunOption = False,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Train with each donor layer, pair of layers or site, and plot which is best.

    There is one run for each candidate and seed, and the host alone for comparison. The checkpoint is opened only once
    for all layers.
    """
    folder = output or ui.workspace.root / "studies" / "sweep"
    plan = sweep_plan(
        donor=donor,
        layers=layers,
        candidates=candidates,
        host=host,
        data=data,
        config=config,
        scale=scale,
        num_seeds=num_seeds,
        assignments=assignments,
        folder=folder,
        ui=ui,
    )

    document = run_plan(plan, folder, workers=workers, executor=executor, address=address, dry_run=dry_run, ui=ui)
    if not dry_run:
        document["picture"] = write_sweep_picture(folder, ui)
    return document


def sweep_plan(
    *,
    donor: str | None,
    layers: str | None,
    candidates: Candidates,
    host: str | None,
    data: list[str] | None,
    config: Path | None,
    scale: Scale,
    num_seeds: int | None,
    assignments: list[str] | None,
    folder: Path,
    ui: Ui,
) -> "StudyPlan":
    """Make the plan of a sweep: the host alone, and a graft for each layer, pair or site."""
    from layer_surgeon.study.arms import DonorSpec
    from layer_surgeon.study.plan import StudyPlan
    from layer_surgeon.study.plan_parts import listed
    from layer_surgeon.study.sweep import choose_layers, count_layers, with_candidates

    overrides: dict[str, Any] = {"host": host, "data": data, "arms": ["host", "graft"]}
    donor_source = donor or (None if config is not None or scale == "small" else "meta-llama/Llama-3.1-8B")
    if donor_source is not None:
        overrides["donor"] = {"source": donor_source}
    with usage():
        content = make_content(
            config=config,
            preset=None,
            scale=scale,
            overrides=overrides,
            num_seeds=num_seeds,
            settings=parse_settings(assignments),
            ui=ui,
        )
    if layers is None and "layers" in content:
        chosen = listed(content, "layers", [])
    else:
        if not content.get("donor"):
            raise UsageError(
                "A sweep compares the layers of one donor, and the plan names none or several. Add --donor MODEL."
            )
        spec = DonorSpec.parse(content["donor"])
        if layers is None and candidates == "sites" and spec.layers != (-1,):
            chosen = [spec.layers]
        else:
            chosen = choose_layers(layers or ("-1" if candidates == "sites" else "all"), count_layers(spec))
    with usage():
        return StudyPlan.from_dict({**with_candidates(content, chosen, candidates), "name": folder.resolve().name})
