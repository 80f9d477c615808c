r"""`write_report`: a study's report in the formats that are asked for.

report/
├── report.html         one page that needs nothing else
├── report.md           the same in words and tables, for GitHub; with the pictures, where they are written too
├── measurements.csv    one row per arm, data set, share, test set and seed
├── comparisons.csv     one row per comparison
├── tables.tex          to \input; needs booktabs
└── figures/*.png
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from layer_surgeon._io import leaving_link, write_text
from layer_surgeon.errors import WorkspaceError
from layer_surgeon.study.report_types import StudyReport

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
        report: What `load_report` gave.
        output: The folder to write into.
        formats: Which.
        force: Replace files of these names.

    Returns:
        What was written, the page first.

    Raises:
        WorkspaceError: The folder can't be written, or holds such files and they are not to be replaced.
    """
    _check(output, formats, force=force)
    written: list[Path] = []
    pictures: dict[str, str] = {}
    if "png" in formats:
        from layer_surgeon.study.report_pictures import save_pictures

        saved = save_pictures(report, output / _FIGURES)
        # Of an earlier report, about arms or data that are no more; other pictures there are not ours to delete.
        for path in (output / _FIGURES).glob("*.png"):
            if path.name not in saved and _OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)
        pictures = {f"{_FIGURES}/{name}": text for name, text in saved.items()}
    if "html" in formats:
        from layer_surgeon.study.report_page import write_page

        write_page(report, output / PAGE)
        written.append(output / PAGE)
    for name, text in _texts(report, formats, pictures).items():
        write_text(output / name, text)
        written.append(output / name)
    return (*written, *(output / name for name in pictures))


def _texts(report: StudyReport, formats: Sequence[Format], pictures: dict[str, str]) -> dict[str, str]:
    texts = {}
    if "md" in formats:
        from layer_surgeon.study.report_markdown import markdown

        texts["report.md"] = markdown(report, pictures)
    if "csv" in formats:
        from layer_surgeon.study.report_csv import comparisons_csv, measurements_csv

        texts |= {"measurements.csv": measurements_csv(report), "comparisons.csv": comparisons_csv(report)}
    if "tex" in formats:
        from layer_surgeon.study.report_latex import latex

        texts["tables.tex"] = latex(report)
    return texts


def _check(output: Path, formats: Sequence[Format], *, force: bool) -> None:
    if output.exists() and not output.is_dir():
        raise WorkspaceError(f"{output} is a file; a report needs a folder. Choose another one with --output.")
    if leaving_link(output / _FIGURES, output) is not None:
        raise WorkspaceError(f"{output / _FIGURES} is a link that leaves {output}. Delete the link.")
    if force:
        return
    names = [name for entry in formats for name in _FILES.get(entry, (_FIGURES,))]
    there = next((output / name for name in names if (output / name).exists()), None)
    if there is not None:
        raise WorkspaceError(
            f"{there} is there already. Replace what a report writes with --force, or choose another folder with "
            "--output."
        )
