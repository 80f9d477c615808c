"""`surgeon sweep`: which layer of the donor, by training with each."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from layer_surgeon.finetune.config import FinetuneConfig

from .command import command, new_app, usage
from .compare import make_content, run_plan
from .ui import Ui

app = new_app()


@command(
    app,
    settings=FinetuneConfig,
    without=("seed", "train_fraction", "task"),
    panel="Training settings (the paper's where none is given)",
)
def sweep(
    donor: Annotated[
        str | None, typer.Argument(help="The large model: a folder, file or repo id (default: Llama-3.1-8B).")
    ] = None,
    layers: Annotated[str, typer.Option("--layers", "-l", help="all, 0,4,8, or a range such as 0:32:4.")] = "all",
    host: Annotated[str | None, typer.Option(help="The small model: a folder or a repo id.")] = None,
    data: Annotated[
        list[str] | None, typer.Option("--dataset", "-d", help="A data set; repeat it for several (default: sst2).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with a plan, as for compare; its arms don't count.")
    ] = None,
    scale: Annotated[
        Literal["full", "small"], typer.Option(help="small: models and data that need no Hub and no GPU.")
    ] = "full",
    num_seeds: Annotated[
        int | None, typer.Option("--num-seeds", help="Runs of each layer. [dim](default: 5)[/]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the study (default: in the workspace).")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", help="Trainings at the same time.")] = 1,
    executor: Annotated[Literal["local", "ray"], typer.Option(help="Who runs them.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many runs, and how long.")] = False,
    *,
    given: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Train with each layer of the donor, and draw which does best.

    One run for each layer and seed, and the host alone beside them. The checkpoint is opened once for all layers.
    """
    folder = output or ui.workspace.root / "studies" / "sweep"
    plan = sweep_plan(
        donor=donor,
        layers=layers,
        host=host,
        data=data,
        config=config,
        scale=scale,
        num_seeds=num_seeds,
        given=given,
        folder=folder,
        ui=ui,
    )

    from layer_surgeon.study.layout import read_json
    from layer_surgeon.study.sweep import PICTURE, draw_sweep

    document = run_plan(plan, folder, workers=workers, executor=executor, address=address, dry_run=dry_run, ui=ui)
    if not dry_run:
        draw_sweep(read_json(folder / "summary.json"), plan, folder / PICTURE)
        document["picture"] = folder / PICTURE
        if not ui.as_json:
            ui.facts({"picture": folder / PICTURE})
    return document


def sweep_plan(
    *,
    donor: str | None,
    layers: str,
    host: str | None,
    data: list[str] | None,
    config: Path | None,
    scale: Literal["full", "small"],
    num_seeds: int | None,
    given: dict[str, Any],
    folder: Path,
    ui: Ui,
) -> Any:
    """The plan of a sweep: the host alone, and the graft with each of the layers."""
    from layer_surgeon.study.arms import DonorSpec
    from layer_surgeon.study.plan import StudyPlan
    from layer_surgeon.study.sweep import choose_layers, count_layers, with_layers

    said: dict[str, Any] = {"host": host, "data": data, "arms": ["host", "graft"]}
    wanted = donor or (None if config is not None or scale == "small" else "meta-llama/Llama-3.1-8B")
    if wanted is not None:
        said["donor"] = {"source": wanted}
    with usage():
        content = make_content(
            config=config, preset=None, scale=scale, said=said, num_seeds=num_seeds, given=given, ui=ui
        )
    spec = DonorSpec.parse(content["donor"])
    chosen = choose_layers(layers, count_layers(spec, folder, ui.progress))
    with usage():
        return StudyPlan.from_dict({**with_layers(content, chosen), "name": folder.name})
