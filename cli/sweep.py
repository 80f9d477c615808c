"""`surgeon sweep`: which layer of the donor, pair of them, or site, by training with each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import command, new_app, usage
from .compare import make_content, run_plan
from .report import write_sweep_picture
from .studies import (
    TRAINING,
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


@command(app, **TRAINING)
def sweep(
    donor: DonorArgument = None,
    layers: LayersOption = None,
    candidates: CandidatesOption = "layers",
    host: HostOption = None,
    data: Annotated[
        list[str] | None, typer.Option("--dataset", "-d", help="A data set; repeat it for several (default: sst2).")
    ] = None,
    config: BaseOption = None,
    scale: ScaleOption = "full",
    num_seeds: Annotated[
        int | None, typer.Option("--num-seeds", help="Runs of each layer. [dim](default: 5)[/]")
    ] = None,
    output: OutputOption = None,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    dry_run: DryRunOption = False,
    *,
    given: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Train with each layer of the donor, pair or site, and draw which does best.

    One run for each of them and each seed, and the host alone beside them. The checkpoint is opened once for all
    layers.
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
        given=given,
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
    given: dict[str, Any],
    folder: Path,
    ui: Ui,
) -> "StudyPlan":
    """The plan of a sweep: the host alone, and the graft with each of the layers, pairs or sites."""
    from layer_surgeon.study.arms import DonorSpec
    from layer_surgeon.study.plan import StudyPlan
    from layer_surgeon.study.rehearsal import rehearsal
    from layer_surgeon.study.sweep import choose_layers, count_layers, with_candidates

    said: dict[str, Any] = {"host": host, "data": data, "arms": ["host", "graft"]}
    wanted = donor or (None if config is not None or scale == "small" else "meta-llama/Llama-3.1-8B")
    if wanted is not None:
        said["donor"] = {"source": wanted}
    with usage():
        content = make_content(
            config=config, preset=None, scale=scale, said=said, num_seeds=num_seeds, given=given, ui=ui
        )
    spec = DonorSpec.parse(content["donor"])
    said_layers = layers or ("-1" if candidates == "sites" else "all")
    # The plan is made before the study's lock is taken, and for dry runs too: nothing is written in its folder.
    with rehearsal(folder) as scratch:
        chosen = choose_layers(said_layers, count_layers(spec, scratch, ui.progress))
        with usage():
            return StudyPlan.from_dict({**with_candidates(content, chosen, candidates, scratch), "name": folder.name})
