"""`surgeon select`: find the best layer, pair of layers, site or depth at a fraction of the cost of a sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_surgeon.errors import TrainingError

from .command import command, new_app
from .depths import check_options, run_depths
from .report import write_page
from .set_option import SetOption, StudyCommand
from .studies import (
    BaseOption,
    DonorArgument,
    HostOption,
    LayersOption,
    ScaleOption,
    SelectedOption,
    WorkersOption,
)
from .sweep import sweep_plan
from .ui import Ui

if TYPE_CHECKING:
    from layer_surgeon.study.selection_result import Selection

app = new_app()


@command(app, command_class=StudyCommand)
def select(
    donor: DonorArgument = None,
    layers: LayersOption = None,
    candidates: SelectedOption = "layers",
    host: HostOption = None,
    data: Annotated[str | None, typer.Option("--dataset", "-d", help="The data set. [dim](default: sst2)[/]")] = None,
    config: BaseOption = None,
    scale: ScaleOption = "full",
    num_seeds: Annotated[
        int | None,
        typer.Option(
            "--num-seeds",
            help="Runs of each candidate in the last rung; for depth: ways of making the folds. "
            "[dim](default: 5; for depth: 3)[/]",
        ),
    ] = None,
    assignments: SetOption = None,
    probe: Annotated[bool, typer.Option(help="Start with a probe that needs no training.")] = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the study. If a sweep is there, its runs are reused. [dim](default: in the workspace)[/]",
        ),
    ] = None,
    workers: WorkersOption = 1,
    states: Annotated[
        Path | None, typer.Option(help="For depth: folder of an earlier `surgeon run` with the training texts.")
    ] = None,
    max_texts: Annotated[
        int | None,
        typer.Option("--max-texts", help="For depth: most training texts that are probed. [dim](default: 2000)[/]"),
    ] = None,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Find the best layer, pair, site or depth at a fraction of the cost of a sweep.

    Uses successive halving: a probe without training, then short trainings, then long ones, each with fewer candidates.
    Only validation data decides. Each training is also measured on the test data, which decides nothing.

    For the depth, nothing is trained and there is no host: a linear probe of the donor's states on the training texts
    shows after how many layers they say most about the classes.
    """
    ignored = {
        "--host": host is not None,
        "--config": config is not None,
        "--scale": scale != "full",
        "--set": bool(assignments),
        "--no-probe": not probe,
    }
    check_options(candidates, ignored, {"--states": states is not None, "--max-texts": max_texts is not None})
    if candidates == "depth":
        return run_depths(
            donor,
            layers=layers,
            data=data or "sst2",
            states=states,
            num_seeds=num_seeds,
            max_texts=max_texts,
            output=output or ui.workspace.root / "studies" / "depth",
            workers=workers,
            ui=ui,
        )
    folder = output or ui.workspace.root / "studies" / "select"
    plan = sweep_plan(
        donor=donor,
        layers=layers,
        candidates=candidates,
        host=host,
        data=None if data is None else [data],
        config=config,
        scale=scale,
        num_seeds=num_seeds,
        assignments=assignments,
        folder=folder,
        ui=ui,
    )

    from layer_surgeon.study.records import as_json
    from layer_surgeon.study.select import select_arm

    try:
        result = select_arm(plan, folder, workers=workers, probe=probe, progress=ui.progress)
    except KeyboardInterrupt as error:
        raise TrainingError("Interrupted. Finished trainings are kept. Run the same command to continue.") from error
    if not ui.as_json:
        _show(result, ui, is_share=plan.is_share)
    return as_json(result) | {"report": write_page(folder, ui)}


def _show(result: "Selection", ui: Ui, *, is_share: bool) -> None:
    from layer_surgeon.study.verdict import say_margin

    names = list(dict.fromkeys(name for rung in result.rungs for name in rung.scores))
    rows = [
        (name, *(f"{rung.scores[name]:.4f}" if name in rung.scores else "" for rung in result.rungs)) for name in names
    ]
    ui.table(("candidate", *(rung.name for rung in result.rungs)), rows)
    ui.headline(result.verdict)
    ui.facts(
        {
            "chosen": f"{result.best}: layer {', '.join(map(str, result.layers))}, site {result.site}",
            **({} if result.margin is None else {"margin": say_margin(result.margin, is_share=is_share)}),
            "cost": f"{result.cost:.0%} of the sweep's examples, about {result.time:.0%} of its time",
            "study": result.path,
        }
    )
