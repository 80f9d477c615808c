"""Two renderings of `layer_surgeon.progress.Progress`: bars for a terminal, lines for everything else."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
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

from .ui import format_bytes, format_seconds

# Away from a terminal a line at most this often: enough to see that it lives, few enough to read a log.
SECONDS_BETWEEN_LINES = 10.0


def _format_metrics(values: Mapping[str, float]) -> str:
    return "  ".join(
        f"{name} {value:.3g}" if abs(value) < 1e-2 else f"{name} {value:.4f}" for name, value in values.items()
    )


class RichProgress:
    """One live bar with rate, remaining time and the newest values."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._task = TaskID(0)
        self._values: dict[str, float] = {}

    def begin(self, description: str, total: int | None, unit: str) -> None:
        """Open a bar."""
        self.end()
        amount: list[ProgressColumn]
        if unit == "bytes":
            amount = [DownloadColumn(), TransferSpeedColumn()]
        else:
            amount = [MofNCompleteColumn(), TextColumn(unit)]
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            *amount,
            TextColumn("[cyan]{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=False,
        )
        self._values = {}
        self._task = self._bars.add_task(escape(description), total=total, values="")
        self._bars.start()

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._bars is not None:
            self._bars.advance(self._task, amount)

    def metrics(self, values: Mapping[str, float]) -> None:
        """Show values beside the bar; earlier names keep their newest value."""
        self._values.update(values)
        if self._bars is not None:
            self._bars.update(self._task, values=_format_metrics(self._values))

    def end(self) -> None:
        """Leave the finished bar on the screen."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def notice(self, message: str) -> None:
        """Print a line above the bar."""
        console = self._bars.console if self._bars is not None else self._console
        console.print(f"[dim]{escape(message)}[/]", soft_wrap=True, highlight=False)


class LineProgress:
    """A plain line now and then: for logs, pipes and CI."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._description: str | None = None
        self._unit = ""
        self._total: int | None = None
        self._done = 0
        self._values: dict[str, float] = {}
        self._started = self._printed = 0.0

    def begin(self, description: str, total: int | None, unit: str) -> None:
        """Say what starts."""
        self.end()
        self._description, self._total, self._unit = description, total, unit
        self._done, self._values = 0, {}
        self._started = self._printed = time.monotonic()

    def advance(self, amount: int) -> None:
        """Count, and now and then say how far it is."""
        self._done += amount
        if self._description is not None and time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._print(self._remaining())

    def metrics(self, values: Mapping[str, float]) -> None:
        """Keep the newest values for the next line."""
        self._values.update(values)

    def end(self) -> None:
        """Say that the step is over and how long it took."""
        if self._description is not None:
            self._print(f"in {format_seconds(time.monotonic() - self._started)}")
            self._description = None

    def notice(self, message: str) -> None:
        """Print a line."""
        self._console.print(escape(message), soft_wrap=True, highlight=False)

    def _remaining(self) -> str:
        elapsed = time.monotonic() - self._started
        if not self._total or not self._done:
            return ""
        return f"{format_seconds(elapsed / self._done * max(self._total - self._done, 0))} left"

    def _print(self, ending: str) -> None:
        self._printed = time.monotonic()
        if self._unit == "bytes":
            done, total = format_bytes(self._done), format_bytes(self._total) if self._total else None
        else:
            done, total = str(self._done), str(self._total) if self._total else None
        amount = f"{done} of {total}" if total else done
        parts = [f"{self._description}: {amount}", "" if self._unit == "bytes" else f" {self._unit}"]
        tail = "  ".join(part for part in (_format_metrics(self._values), ending) if part)
        self._console.print(escape("".join(parts) + (f"  {tail}" if tail else "")), soft_wrap=True, highlight=False)
