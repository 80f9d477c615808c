"""The protocol by which long operations report their progress.

The library calls a `Progress`. The command line has one that renders with rich. `NullProgress`, the default, does
nothing.
"""

from collections.abc import Mapping
from typing import Protocol


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
