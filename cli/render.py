"""Two implementations of `layer_surgeon.progress.Progress`: bars for terminals, lines for everything else."""

import time
from collections.abc import Iterable, Mapping

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from layer_surgeon._format import format_bytes, format_seconds

from .ui import escape_text

# Without a terminal, there is one line for every tenth of a step, but at least SECONDS_BETWEEN_LINES apart. After
# SECONDS_OF_SILENCE there is a line in any case, because otherwise the run seems to hang.
TENTHS = 10
SECONDS_BETWEEN_LINES = 10.0
SECONDS_OF_SILENCE = 600.0
# Scores on the validation examples have this prefix. Values of every step don't.
_VALIDATION_PREFIX = "val "


def _format_values(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {_format_value(name, value)}" for name, value in values.items())


def _format_value(name: str, value: float) -> str:
    if name in ("memory", "read"):
        return format_bytes(value)
    if name == "layer":
        return f"{value:.0f}"
    if name.endswith("/s"):
        return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"
    return f"{value:.3g}" if abs(value) < 1e-2 else f"{value:.4f}"


class _Panel(Bars):
    """A bar. Once there are values, a frame with the bar and the newest values."""

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        self.values: dict[str, float] = {}
        super().__init__(*columns, console=console, transient=False)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, or the frame around bar and values. Called several times per second."""
        bar = self.make_tasks_table(self.tasks)
        if not self.values:
            yield bar
            return
        scores = {name: value for name, value in self.values.items() if name.startswith(_VALIDATION_PREFIX)}
        training = {name: value for name, value in self.values.items() if name not in scores}
        rows = [_row(training)] if training else []
        if scores:
            row = _row({name.removeprefix(_VALIDATION_PREFIX): value for name, value in scores.items()})
            rows.append(Text.assemble(("validation:  ", "dim"), row))
        yield Panel(Group(bar, *rows), expand=False, border_style="dim")


def _row(values: Mapping[str, float]) -> Text:
    """Show names in grey and values in colour."""
    cells = [Text.assemble((f"{name} ", "dim"), (_format_value(name, value), "cyan")) for name, value in values.items()]
    return Text("   ").join(cells)


class RichProgress:
    """A live bar with the remaining time. In training, a panel adds loss, learning rate, speed, memory and scores."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: _Panel | None = None
        self._task = TaskID(0)

    def begin(self, description: str, total: int | None, unit: str) -> None:
        """Open a bar."""
        self.end()
        amount: list[ProgressColumn]
        if unit == "bytes":
            amount = [DownloadColumn(), TransferSpeedColumn()]
        else:
            amount = [MofNCompleteColumn(), TextColumn(unit)]
        self._bars = _Panel(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            *amount,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bars.add_task(escape_text(description), total=total)
        self._bars.start()

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._bars is not None:
            self._bars.advance(self._task, amount)

    def metrics(self, values: Mapping[str, float]) -> None:
        """Show values below the bar. Names that are not in `values` keep their last value."""
        if self._bars is not None:
            self._bars.values.update(values)

    def end(self) -> None:
        """Stop the bar and leave it on the screen."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def notice(self, message: str) -> None:
        """Print a line above the bar."""
        console = self._bars.console if self._bars is not None else self._console
        console.print(f"[dim]{escape_text(message)}[/]", soft_wrap=True, highlight=False)


class LineProgress:
    """Occasional plain lines, for logs, pipes and CI."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._description: str | None = None
        self._unit = ""
        self._total: int | None = None
        self._done = 0
        self._values: dict[str, float] = {}
        self._started = self._printed = 0.0
        self._tenth = 0
        # Time and amount of the first `advance`. An earlier run may have done this amount, so the speed ignores it.
        self._first: tuple[float, int] | None = None

    def begin(self, description: str, total: int | None, unit: str) -> None:
        """Start a step."""
        self.end()
        self._description, self._total, self._unit = description, total, unit
        self._done, self._values = 0, {}
        self._tenth, self._first = 0, None
        self._started = self._printed = time.monotonic()

    def advance(self, amount: int) -> None:
        """Count, and print a line for every tenth."""
        self._done += amount
        silence = time.monotonic() - self._printed
        tenth = self._done * TENTHS // self._total if self._total else self._tenth + 1
        if self._first is None:
            self._first, self._tenth = (time.monotonic(), self._done), tenth
        # `end` prints the last line.
        is_due = silence >= SECONDS_BETWEEN_LINES and tenth > self._tenth and self._done != self._total
        if self._description is not None and (is_due or silence >= SECONDS_OF_SILENCE):
            self._tenth = tenth
            self._print(self._remaining())

    def metrics(self, values: Mapping[str, float]) -> None:
        """Keep the values for the next line."""
        self._values.update(values)

    def end(self) -> None:
        """Print a last line with the time that the step took."""
        if self._description is not None:
            self._print(f"in {format_seconds(time.monotonic() - self._started)}")
            self._description = None

    def notice(self, message: str) -> None:
        """Print a line."""
        self._console.print(escape_text(message), soft_wrap=True, highlight=False)

    def _remaining(self) -> str:
        if not self._total or self._first is None or self._done <= self._first[1]:
            return ""
        first_time, first_amount = self._first
        seconds_per_unit = (time.monotonic() - first_time) / (self._done - first_amount)
        return f"{format_seconds(seconds_per_unit * max(self._total - self._done, 0))} left"

    def _print(self, ending: str) -> None:
        self._printed = time.monotonic()
        if self._unit == "bytes":
            done, total = format_bytes(self._done), format_bytes(self._total) if self._total else None
        else:
            done, total = str(self._done), str(self._total) if self._total else None
        amount = f"{done} of {total}" if total else done
        parts = [f"{self._description}: {amount}", "" if self._unit == "bytes" else f" {self._unit}"]
        details = "  ".join(part for part in (_format_values(self._values), ending) if part)
        self.notice("".join(parts) + (f"  {details}" if details else ""))
