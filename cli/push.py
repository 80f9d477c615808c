"""`surgeon push`: a graft, a run or a layer onto the Hub."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import command, new_app
from .ui import Ui, format_bytes

if TYPE_CHECKING:
    from layer_surgeon.graft import PushResult

app = new_app()


@command(app)
def push(
    repo: Annotated[str, typer.Argument(help="The repo, such as me/my-graft; made where there is none.")],
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of a graft, a run or a layer artifact (default: the latest run).")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repo public; it is private otherwise.")] = False,
    without_donor: Annotated[
        bool, typer.Option("--without-donor", help="Leave the donor layer out; a user must have it already.")
    ] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Message of the commit.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch (default: main).")] = None,
    token: Annotated[str | None, typer.Option(help="Hub token (default: the one of `hf auth login`).")] = None,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Put a graft, a run or a layer onto the Hub.

    With its model card: the models it was made from and their licences, how to use it and, of a run, data, settings and
    scores. Training state, logs and paths of this machine stay here.
    """
    source = folder or ui.workspace.latest("run")

    from layer_surgeon.graft.push import push_graft  # huggingface_hub takes a while; --help must not

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
    """Say what was uploaded, and whose terms there are to mind."""
    if result.holds_donor:
        terms = f"its licence is {result.terms}" if result.terms else "its licence is not stated"
        ui.progress.notice(f"The repo holds weights of the donor model; {terms}. See that you may share them.")
    if not ui.as_json:
        ui.facts(
            {
                "folder": folder,
                "page": result.url,
                "commit": result.commit,
                "files": f"{len(result.files)}, {format_bytes(result.num_bytes)}: {', '.join(result.files)}",
            }
        )
