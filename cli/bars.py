"""`RichProgress`, the `layer_surgeon.progress.Progress` of terminals: live bars."""

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

from layer_surgeon._format import format_value

from .ui import escape_text

# Scores on the validation examples have this prefix. Values of every step don't.
_VALIDATION_PREFIX = "val "


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
    cells = [Text.assemble((f"{name} ", "dim"), (format_value(name, value), "cyan")) for name, value in values.items()]
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
            # A new dict, because rich draws the old one in a thread of its own.
            self._bars.values = {**self._bars.values, **values}

    def end(self) -> None:
        """Stop the bar and leave it on the screen."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def notice(self, message: str) -> None:
        """Print a line above the bar."""
        console = self._bars.console if self._bars is not None else self._console
        console.print(f"[dim]{escape_text(message)}[/]", soft_wrap=True, highlight=False)
