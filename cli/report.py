"""`surgeon report`: write the report of a study, for readers, papers and programs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from layer_surgeon._io import write_bytes

from .command import command, new_app
from .errors import UsageError
from .ui import Ui

app = new_app()


@command(app)
def report(
    study: Annotated[Path, typer.Argument(help="Folder of a study of compare, sweep or select.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the report. [dim](default: STUDY/report)[/]")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="html, md, csv, tex or png. Repeat it for several. [dim](default: all)[/]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a report in the folder of --output.")] = False,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Write the report of a study: a page with verdict, tables and plots; also Markdown, CSV, LaTeX and PNG.

    Nothing is trained. For a study that is running or was stopped, the report has the trainings that are finished.
    """
    from layer_surgeon.report.export import FOLDER, FORMATS, write_report
    from layer_surgeon.report.load import load_report
    from layer_surgeon.study.layout import StudyFolder

    unknown_format = next((name for name in formats or () if name not in FORMATS), None)
    if unknown_format is not None:
        raise UsageError(f"--format is {unknown_format!r}; it must be one of {', '.join(FORMATS)}.")
    loaded = load_report(study)
    folder = output or StudyFolder(root=study).path(FOLDER)
    chosen_formats = [name for name in FORMATS if formats is None or name in formats]
    # Only this command writes the default folder inside the study, so it may be replaced.
    paths = write_report(loaded, folder, chosen_formats, force=force or output is None)
    if not ui.as_json:
        ui.headline(loaded.summary.verdict)
        figures = [path for path in paths if path.suffix == ".png"]
        rows = {path.name: path for path in paths if path not in figures}
        ui.facts({"trainings": loaded.state, **rows, **({"figures": figures[0].parent} if figures else {})})
    return {
        "study": study,
        "kind": loaded.kind,
        "verdict": loaded.summary.verdict,
        "done": len(loaded.results),
        "planned": loaded.summary.cells.planned,
        "path": folder,
        "files": paths,
    }


def write_page(folder: Path, ui: Ui) -> Path:
    """Write the page of a study that has just run, and show its path."""
    from layer_surgeon.report.export import FOLDER, write_report
    from layer_surgeon.report.load import load_report
    from layer_surgeon.study.layout import StudyFolder

    (page,) = write_report(load_report(folder), StudyFolder(root=folder).path(FOLDER), ("html",))
    if not ui.as_json:
        ui.facts({"report": page})
    return page


def write_sweep_picture(folder: Path, ui: Ui) -> Path | None:
    """Write the picture of a sweep that has just run, and show its path; None if fewer than two points are finished."""
    from layer_surgeon.report.load import load_report
    from layer_surgeon.report.pictures import draw_sweep
    from layer_surgeon.study.layout import SWEEP, StudyFolder

    picture = draw_sweep(load_report(folder))
    if picture is None:
        return None
    path = StudyFolder(root=folder).path(SWEEP)
    write_bytes(path, picture)
    if not ui.as_json:
        ui.facts({"picture": path})
    return path
