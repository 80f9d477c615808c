"""`surgeon push`: upload a graft, a run, a layer or an assembled model to the Hub."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_surgeon._format import format_bytes
from layer_surgeon._model_types import DONOR_FOLDER

from .command import command, new_app
from .ui import Ui

if TYPE_CHECKING:
    from layer_surgeon.graft import PushResult

app = new_app()


@command(app)
def push(
    repo: Annotated[str, typer.Argument(help="The repo, such as me/my-graft. Created if it does not exist.")],
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of a graft, a run, a layer artifact or an assembled model (default: the latest run)."
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repo public instead of private.")] = False,
    without_donor: Annotated[
        bool, typer.Option("--without-donor", help="Leave the donor layer out. Users then need their own copy.")
    ] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Commit message.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch (default: main).")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token (default: the one of `hf auth login`).")] = None,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Upload a graft, a run, a layer or an assembled model to the Hub.

    The model card names the models it was made from, their licences and how to use it. For a run, it also has the data,
    settings and scores. Training state, logs and local paths are not uploaded.
    """
    source = folder or ui.latest("run")

    from layer_surgeon.hub.push import push_graft  # huggingface_hub takes a while; --help must not

    result = push_graft(
        source,
        repo,
        private=not public,
        include_donor=not without_donor,
        message=message,
        revision=revision,
        token=token,
    )
    show_push(result, source, ui)
    return {"folder": source, **asdict(result)}


def show_push(result: "PushResult", folder: Path, ui: Ui) -> None:
    """Show what was uploaded, and the licence of the donor model."""
    if result.holds_donor:
        terms = f"its licence is {result.terms}" if result.terms else "its licence is not stated"
        ui.progress.notice(f"The repo has weights of other models; {terms}. Check that you may share them.")
    if any(name.startswith(f"{DONOR_FOLDER}/") for name in result.deleted):
        ui.progress.notice("The donor layer is deleted, but earlier commits of the repo still hold it.")
    if not ui.as_json:
        ui.facts(
            {
                "folder": folder,
                "page": result.url,
                "commit": result.commit,
                **({"deleted": ", ".join(result.deleted)} if result.deleted else {}),
                "files": f"{len(result.files)}, {format_bytes(result.num_bytes)}: {', '.join(result.files)}",
            }
        )
