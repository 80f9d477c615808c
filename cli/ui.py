"""What a command shows: results on stdout, everything else on stderr."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_surgeon._text import printable, printable_json
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Ui:
    """The conventions of every command.

    Attributes:
        as_json: One JSON document on stdout, and nothing else there.
        quiet: No progress and no notices; errors still appear.
        debug: Tracebacks.
        workspace: Where layers, grafts and runs lie.
    """

    as_json: bool
    quiet: bool
    debug: bool
    workspace: Workspace

    @cached_property
    def out(self) -> "Console":
        """The console of results."""
        return _console(stderr=False)

    @cached_property
    def err(self) -> "Console":
        """The console of progress, notices and errors."""
        return _console(stderr=True)

    @cached_property
    def progress(self) -> Progress:
        """Bars on a terminal, plain lines elsewhere, nothing with `--quiet`."""
        if self.quiet:
            return NullProgress()
        from .render import LineProgress, RichProgress  # rich's progress is only needed where something is shown

        return RichProgress(self.err) if self.err.is_terminal else LineProgress(self.err)

    def error(self, message: str) -> None:
        """Show why the command failed."""
        self.err.print(f"[bold red]error:[/] {escape_text(message)}", soft_wrap=True, highlight=False)

    def document(self, content: Any) -> None:
        """Print the one JSON document of `--json`."""
        text = json.dumps(content, indent=2, default=_plain, ensure_ascii=False)
        sys.stdout.write(printable_json(text) + "\n")

    def line(self, text: str) -> None:
        """Print one line of the result; markup is allowed."""
        self.out.print(printable(text), soft_wrap=True, highlight=False)

    def headline(self, text: str) -> None:
        """Print what came out, in one bold sentence, as it is."""
        self.line(f"[bold]{escape_text(text)}[/]\n")

    def facts(self, rows: Mapping[str, Any]) -> None:
        """Print names and values, aligned."""
        width = max(map(len, rows), default=0)
        for name, value in rows.items():
            self.line(f"[bold]{escape_text(f'{name:<{width}}')}[/]  {escape_text(str(value))}")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
        """Print a table; columns of numbers are set to the right."""
        from rich import box
        from rich.table import Table

        shown = None if title is None else escape_text(title)
        table = Table(title=shown, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(header):
            numeric = bool(rows) and all(isinstance(row[index], int | float) or _is_number(row[index]) for row in rows)
            table.add_column(escape_text(name), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape_text(str(cell)) for cell in row))
        self.out.print(table)


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Away from a terminal rich would assume 80 columns and fold long names: a file or pipe has no such limit.
    return Console(stderr=stderr, width=None if stream.isatty() else 160, no_color=None if stream.isatty() else True)


def escape_text(text: str) -> str:
    """Text from anywhere as a terminal may have it: no markup, no control sequences."""
    from rich.markup import escape

    return escape(printable(text))


def _is_number(cell: Any) -> bool:
    return isinstance(cell, str) and bool(cell) and cell[0].isdigit() and not cell[-1].isalpha()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    raise TypeError(f"{type(value).__name__} does not belong into a JSON document")


def format_bytes(num_bytes: float) -> str:
    """A size for people: `436.2 MB` (powers of 1000, as file systems and the Hub show them)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def format_count(count: float) -> str:
    """A number of parameters for people: `218.1 M`."""
    for unit in ("", " k", " M", " B"):
        if abs(count) < 1000 or unit == " B":
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    raise AssertionError("the last unit takes everything")


def format_seconds(seconds: float) -> str:
    """A duration for people: `0.8 s`, `42 s`, `3 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
