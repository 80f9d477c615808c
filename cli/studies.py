"""The options that the commands of a study share."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from layer_surgeon.finetune.config import FinetuneConfig

Scale = Literal["full", "small"]
Executor = Literal["local", "ray"]
Candidates = Literal["layers", "pairs", "sites"]

# Of the settings of training, those that a study doesn't set itself: for `command`.
TRAINING: dict[str, Any] = {
    "settings": FinetuneConfig,
    "without": ("seed", "train_fraction", "task"),
    "panel": "Training settings (the paper's where none is given)",
}

DonorArgument = Annotated[
    str | None, typer.Argument(help="The large model: a folder, file or repo id (default: Llama-3.1-8B).")
]
CandidatesOption = Annotated[
    Candidates,
    typer.Option(
        help="What is tried: layers; pairs: each layer with the next of --layers; sites: places in the host for the "
        "last layer, or for those that --layers names."
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers", "-l", help="all, 0,4,8, or a range such as 0:32:4. [dim](default: all; for sites: the last)[/]"
    ),
]
HostOption = Annotated[str | None, typer.Option(help="The small model: a folder or a repo id.")]
BaseOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with a plan, as for compare; its arms don't count.")
]
ScaleOption = Annotated[Scale, typer.Option(help="small: models and data that need no Hub and no GPU.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of the study (default: in the workspace).")
]
WorkersOption = Annotated[int, typer.Option("--workers", "-w", help="Trainings at the same time.")]
ExecutorOption = Annotated[Executor, typer.Option(help="Who runs them.")]
AddressOption = Annotated[str | None, typer.Option(help="Of the Ray cluster.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say how many runs, and how long.")]
