"""The protocol by which long operations report their progress.

The library calls a `Progress`. `ProgressBar` shows bars in a notebook or on a terminal. The command line has one that
renders with rich. `NullProgress`, the default, does nothing.
"""

import sys
from collections.abc import Mapping
from typing import Any, Protocol

from layer_surgeon._format import format_value
from layer_surgeon._text import printable


class Progress(Protocol):
    """Receives the progress of a long operation.

    Steps don't nest. Each step is one `begin`, any number of `advance` and `metrics`, and one `end`.
    """

    def begin(self, description: str, total: int | None, unit: str) -> None:
        """Start a step of `total` units; None means unknown. `unit` is a plural noun, such as "bytes" or "steps"."""

    def advance(self, amount: int) -> None:
        """Count `amount` more units of the current step as done. A negative amount undoes a failed attempt."""

    def metrics(self, values: Mapping[str, float]) -> None:
        """Show the latest named values, such as the loss, next to the step. `memory` and `read` are in bytes."""

    def end(self) -> None:
        """Finish the current step."""

    def notice(self, message: str) -> None:
        """Show one line to the user, whether or not a step is running."""


class NullProgress:
    """A `Progress` that ignores everything."""

    def begin(self, description: str, total: int | None, unit: str) -> None:
        """Ignore the start of a step."""

    def advance(self, amount: int) -> None:
        """Ignore progress."""

    def metrics(self, values: Mapping[str, float]) -> None:
        """Ignore values."""

    def end(self) -> None:
        """Ignore the end of a step."""

    def notice(self, message: str) -> None:
        """Ignore a message."""


class ProgressBar:
    """A `Progress` for Python: one bar per step, as a widget in notebooks with ipywidgets, and as text elsewhere.

    Pass it as `progress=ProgressBar()` to `extract_layer`, `finetune_model` and other long operations.
    """

    def __init__(self) -> None:
        self._bar: Any = None

    def begin(self, description: str, total: int | None, unit: str) -> None:
        """Open a bar."""
        self.end()
        from tqdm.auto import tqdm  # only needed to show progress

        is_bytes = unit == "bytes"
        self._bar = tqdm(
            desc=printable(description), total=total, unit="B" if is_bytes else f" {unit}", unit_scale=is_bytes
        )

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(amount)

    def metrics(self, values: Mapping[str, float]) -> None:
        """Show values behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix({name: format_value(name, n) for name, n in values.items()}, refresh=False)

    def end(self) -> None:
        """Close the bar, which stays visible."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def notice(self, message: str) -> None:
        """Print one line to stderr, above the bar."""
        from tqdm.auto import tqdm

        tqdm.write(printable(message), file=sys.stderr)
