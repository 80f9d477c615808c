"""`surgeon push`: a graft or a layer onto the Hub."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .command import command, new_app
from .ui import Ui, format_bytes

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
    """Put a graft or a layer onto the Hub.

    With its model card, which names host and donor model, their licences, the parameters and how to use it.
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
    if not without_donor:
        terms = f"its licence is {result.terms}" if result.terms else "its licence is not stated"
        ui.progress.notice(f"The repo holds weights of the donor model; {terms}. See that you may share them.")
    if not ui.as_json:
        ui.facts(
            {
                "folder": source,
                "page": result.url,
                "commit": result.commit,
                "files": f"{len(result.files)}, {format_bytes(result.num_bytes)}",
            }
        )
    return {"folder": source, **asdict(result)}
