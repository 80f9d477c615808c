"""The output of a command: results on stdout, everything else on stderr."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_surgeon._text import printable, printable_json
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.workspace import Kind, Workspace

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Ui:
    """How every command shows its results, progress and errors.

    Attributes:
        as_json: Print one JSON document on stdout and nothing else.
        quiet: Show no progress and no notices. Errors still appear.
        debug: Show tracebacks.
        workspace: The folder of layers, grafts and runs.
    """

    as_json: bool
    quiet: bool
    debug: bool
    workspace: Workspace

    @cached_property
    def out(self) -> "Console":
        """The console for results."""
        return _console(stderr=False)

    @cached_property
    def err(self) -> "Console":
        """The console for progress, notices and errors."""
        return _console(stderr=True)

    @cached_property
    def progress(self) -> Progress:
        """Bars on a terminal, plain lines elsewhere, nothing with `--quiet`."""
        if self.quiet:
            return NullProgress()
        # A cell with `!surgeon` looks like a terminal, but can't move its cursor: a panel would appear again and again.
        if self.err.is_terminal and "JPY_PARENT_PID" not in os.environ:
            from .bars import RichProgress  # takes time to import, and is only needed to show progress

            return RichProgress(self.err)
        from .render import LineProgress

        return LineProgress(self.err)

    def latest(self, kind: Kind) -> Path:
        """Return the latest layer, graft or run, and say which it is.

        Raises:
            WorkspaceError: As in `Workspace.latest`.
        """
        folder = self.workspace.latest(kind)
        self.progress.notice(f"Using the latest {kind}: {os.path.relpath(folder)}")
        return folder

    def error(self, message: str) -> None:
        """Show why the command failed."""
        self.err.print(f"[bold red]error:[/] {escape_text(message)}", soft_wrap=True, highlight=False)

    def document(self, content: Any) -> None:
        """Print the JSON document of `--json`."""
        # JSON has no NaN and no infinity.
        plain = json.loads(json.dumps(content, default=_to_json), parse_constant=lambda _: None)
        text = json.dumps(plain, indent=2, ensure_ascii=False)
        sys.stdout.write(printable_json(text) + "\n")

    def line(self, text: str) -> None:
        """Print one line of the result. Markup is allowed."""
        self.out.print(printable(text), soft_wrap=True, highlight=False)

    def headline(self, text: str) -> None:
        """Print the main result as one bold sentence. Markup in it is escaped."""
        self.line(f"[bold]{escape_text(text)}[/]\n")

    def facts(self, rows: Mapping[str, Any]) -> None:
        """Print names and values in two aligned columns."""
        width = max(map(len, rows), default=0)
        for name, value in rows.items():
            self.line(f"[bold]{escape_text(f'{name:<{width}}')}[/]  {escape_text(str(value))}")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
        """Print a table. Columns of numbers are aligned to the right."""
        from rich import box
        from rich.table import Table

        safe_title = None if title is None else escape_text(title)
        table = Table(title=safe_title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(header):
            is_numeric = bool(rows) and all(
                isinstance(row[index], int | float) or _is_number(row[index]) for row in rows
            )
            table.add_column(escape_text(name), justify="right" if is_numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape_text(str(cell)) for cell in row))
        self.out.print(table)


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # If the output is not a terminal, rich assumes 80 columns and folds long names. Files and pipes have no such limit.
    width, no_color = (None, None) if stream.isatty() else (160, True)
    # A name may have text such as :warning:, which is not meant as a picture.
    return Console(stderr=stderr, width=width, no_color=no_color, emoji=False)


def escape_text(text: str) -> str:
    """Make untrusted text safe for a terminal: escape markup and remove control sequences."""
    from rich.markup import escape

    return escape(printable(text))


def _is_number(cell: Any) -> bool:
    return isinstance(cell, str) and bool(cell) and cell[0].isdigit() and not cell[-1].isalpha()


def _to_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    raise TypeError(f"a JSON document can't have a value of type {type(value).__name__}")
