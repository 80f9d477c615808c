"""`surgeon graft`: put a donor layer into a small model."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.tasks import get_task

from .command import command, new_app, usage
from .errors import UsageError
from .ui import Ui, escape_text

if TYPE_CHECKING:
    from layer_surgeon.graft.build import GraftResult

_READS = {"host": "the text, as the host's tokens", "own": "the text, as tokens of the donor"}
# The settings of the studies in which a donor that reads its own tokens helped; see docs/reading_donor.md.
_STUDY_OPTIONS = "--head-learning-rate 1e-3 --projection-learning-rate 1e-3 --num-epochs 10"

app = new_app()


@command(app, settings=GraftConfig, panel="Graft settings (default: the paper's, but for --projection-init)")
def graft(
    host: Annotated[str, typer.Argument(help="The small model: a Hub repo id, a folder or packaged:NAME.")],
    donor: Annotated[
        str | None,
        typer.Option("--donor", "-d", help="Folder or repo id of a layer artifact (default: the latest layer)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the grafted model (default: in the workspace).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights of projections and head.")] = 2023,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the host's repo.")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token (default: the one of `hf auth login`).")] = None,
    recipe: Annotated[
        Literal["standard", "paper"],
        typer.Option(help="paper: exactly the paper's graft, with projection_init default."),
    ] = "standard",
    force: Annotated[bool, typer.Option("--force", help="Replace the contents of the output folder.")] = False,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Put a donor layer into a small model.

    The result is an ordinary transformers model of host, projections, frozen layer and head. Train it next.
    """
    if recipe == "paper" and settings.setdefault("projection_init", "default") != "default":
        raise UsageError(
            f"--recipe is paper, and --projection-init is {settings['projection_init']}, but the paper's "
            "initialisation is default. Leave one of the two options out."
        )
    donor_folder = donor or ui.latest("layer")

    from layer_surgeon.graft.build import save_graft  # torch and transformers take seconds; --help must not
    from layer_surgeon.graft.donor_loading import reading_settings

    reading = reading_settings(donor_folder, settings, token=token)
    with usage():
        config = GraftConfig(**(reading | settings))
    if recipe == "paper" and config.reads_text:
        raise UsageError(
            "--recipe is paper, and the donor is a stack, which reads text, but the paper's donor gets the host's "
            "vectors. Leave --recipe out, or extract a layer without --embeddings."
        )
    result = save_graft(
        host,
        donor_folder,
        config=config,
        output=output,
        seed=seed,
        revision=revision,
        token=token,
        force=force,
        workspace=ui.workspace,
        progress=ui.progress,
    )
    if not ui.as_json:
        _show(ui, result)
    return _document(result)


def _show(ui: Ui, result: "GraftResult") -> None:
    reads = {"reads": _READS[result.settings.donor_tokens]} if result.settings.reads_text else {}
    ui.facts({"host": result.host, "donor": result.donor, **reads, "folder": result.path})
    rows = [(part, f"{total:,}", f"{trained:,}") for part, (total, trained) in result.parameters.items()]
    rows.append(("all", f"{result.num_parameters:,}", f"{result.num_trained_parameters:,}"))
    ui.table(("part", "parameters", "trained"), rows)
    if result.notice is not None:
        ui.line(escape_text(result.notice))
    if result.is_loud:
        ui.line(
            f"Before training, the output of this graft is {result.loudness:,.0f} times as large as the host's (RMS). "
            'Such grafts were worse than the host alone. [bold]--projection-init matched[/] helps: see "When the donor '
            'is loud" in docs/graft.md.'
        )
    record = get_task(result.settings.task)
    if record.finetune_class is None:
        ui.line("Next: train it with sentence-transformers: docs/embeddings.md")
    elif record.labels and len(result.settings.labels) == 1:
        ui.line("Next: train it with transformers' Trainer: docs/trainer.md (one label is regression)")
    elif result.settings.donor_tokens == "own":
        advice = "" if result.settings.pooling == "mean" else ", which graft with --pooling mean"
        ui.line(f"Next: [bold]surgeon finetune {_STUDY_OPTIONS}[/] (as in our studies{advice}: docs/reading_donor.md)")
    else:
        ui.line("Next: [bold]surgeon finetune[/]")


def _document(result: "GraftResult") -> dict[str, Any]:
    return {
        "path": result.path,
        "host": result.host,
        "donor": result.donor,
        "settings": asdict(result.settings),
        "loudness": result.loudness,
        "loudness_unmatched": result.loudness_unmatched,
        "num_parameters": result.num_parameters,
        "num_trained_parameters": result.num_trained_parameters,
        "parameters": {
            part: {"total": total, "trained": trained} for part, (total, trained) in result.parameters.items()
        },
    }
