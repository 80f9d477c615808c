"""`LineProgress`, the `layer_surgeon.progress.Progress` of logs, pipes and CI; `bars` has the one of terminals."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from layer_surgeon._format import format_bytes, format_seconds, format_value

from .ui import escape_text

if TYPE_CHECKING:
    from rich.console import Console

# Without a terminal, there is one line for every tenth of a step, but at least SECONDS_BETWEEN_LINES apart. After
# SECONDS_OF_SILENCE there is a line in any case, because otherwise the run seems to hang.
TENTHS = 10
SECONDS_BETWEEN_LINES = 10.0
SECONDS_OF_SILENCE = 600.0


def _format_values(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {format_value(name, value)}" for name, value in values.items())


class LineProgress:
    """Occasional plain lines, for logs, pipes and CI."""

    def __init__(self, console: "Console") -> None:
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
