r"""`write_report`: writes a study's report in the requested formats.

report/
├── report.html         one page that loads no other files
├── report.md           the same as text and tables, for GitHub; includes the pictures if they are written too
├── measurements.csv    one row per arm, data set, share, test set and seed
├── comparisons.csv     one row per comparison
├── tables.tex          for \input; needs booktabs
└── figures/*.png
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from layer_surgeon._folders import leaving_link
from layer_surgeon._io import write_bytes, write_text
from layer_surgeon.errors import WorkspaceError
from layer_surgeon.report.load import StudyReport

Format = Literal["html", "md", "csv", "tex", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)
FOLDER = "report"
PAGE = "report.html"
_FILES = {"html": (PAGE,), "md": ("report.md",), "csv": ("measurements.csv", "comparisons.csv"), "tex": ("tables.tex",)}
_FIGURES = "figures"
_OURS = re.compile(r"(scores|layers|cost|shift|learning)(-\d+)?\.png")


def write_report(
    report: StudyReport, output: Path, formats: Sequence[Format] = FORMATS, *, force: bool = True
) -> tuple[Path, ...]:
    """Write a report.

    Args:
        report: The result of `load_report`.
        output: The folder to write to.
        formats: The formats to write.
        force: Whether to replace existing files.

    Returns:
        The written files, with the page first.

    Raises:
        WorkspaceError: The folder can't be written, or has such files and `force` is false.
    """
    _check(output, formats, force=force)
    pictures: dict[str, str] = {}
    if "png" in formats:
        from layer_surgeon.report.pictures import draw_pictures

        drawn = draw_pictures(report)
        for name, (content, _) in drawn.items():
            write_bytes(output / _FIGURES / name, content)
        # Delete pictures of an earlier report that this one doesn't have. Other pictures in the folder are the user's.
        for path in (output / _FIGURES).glob("*.png"):
            if path.name not in drawn and _OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)
        pictures = {f"{_FIGURES}/{name}": title for name, (_, title) in drawn.items()}
    texts = _texts(report, formats, pictures)
    for name, text in texts.items():
        write_text(output / name, text)
    return (*(output / name for name in texts), *(output / name for name in pictures))


def _texts(report: StudyReport, formats: Sequence[Format], pictures: dict[str, str]) -> dict[str, str]:
    texts = {}
    if "html" in formats:
        from layer_surgeon.report.render import html

        texts[PAGE] = html(report)
    if "md" in formats:
        from layer_surgeon.report.render import markdown

        texts["report.md"] = markdown(report, pictures)
    if "csv" in formats:
        from layer_surgeon.report.csv_files import comparisons_csv, measurements_csv

        texts |= {"measurements.csv": measurements_csv(report), "comparisons.csv": comparisons_csv(report)}
    if "tex" in formats:
        from layer_surgeon.report.latex import latex

        texts["tables.tex"] = latex(report)
    return texts


def _check(output: Path, formats: Sequence[Format], *, force: bool) -> None:
    if output.exists() and not output.is_dir():
        raise WorkspaceError(f"{output} is a file; a report needs a folder. Choose a folder with --output.")
    if leaving_link(output / _FIGURES, output) is not None:
        raise WorkspaceError(f"{output / _FIGURES} is a link that leads out of {output}. Delete the link.")
    if force:
        return
    names = [name for file_format in formats for name in _FILES.get(file_format, (_FIGURES,))]
    existing = next((output / name for name in names if (output / name).exists()), None)
    if existing is not None:
        raise WorkspaceError(
            f"{existing} already exists. Replace the files of the report with --force, or choose another folder with "
            "--output."
        )
