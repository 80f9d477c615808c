"""The options that `compare`, `sweep` and `select` share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Scale = Literal["full", "small"]
Executor = Literal["local", "ray"]
Candidates = Literal["layers", "pairs", "sites"]

DonorArgument = Annotated[
    str | None,
    typer.Argument(
        help="The large model: a folder, file or repo id. [dim](default: of the plan or scale, else Llama-3.1-8B)[/]"
    ),
]
CandidatesOption = Annotated[
    Candidates,
    typer.Option(
        help="What to try. layers: each layer; pairs: each layer of --layers with the next one; sites: the sites in "
        "the host, with the plan's layers (default: the last) or those of --layers."
    ),
]
SelectedOption = Annotated[
    Literal["layers", "pairs", "sites", "depth"],
    typer.Option(
        help="What to try. layers, pairs and sites as for `surgeon sweep`; depth: how many of the donor's first "
        "layers, by a probe of its states that needs no host and no training."
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        "-l",
        help="all, 0,4,8, or a range such as 0:32:4. [dim](default: all; for sites: those of the plan, or the last)[/]",
    ),
]
HostOption = Annotated[str | None, typer.Option(help="The small model: a folder or a repo id.")]
BaseOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with a plan, as for compare. Its arms are ignored.")
]
ScaleOption = Annotated[Scale, typer.Option(help="small: use models and data that need neither the Hub nor a GPU.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of the study. [dim](default: in the workspace)[/]")
]
WorkersOption = Annotated[int, typer.Option("--workers", "-w", min=1, help="How many trainings run at the same time.")]
ExecutorOption = Annotated[Executor, typer.Option(help="Where trainings run: on this machine or on a Ray cluster.")]
AddressOption = Annotated[str | None, typer.Option(help="Address of the Ray cluster.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Only show how many trainings there are and how long they take.")
]
