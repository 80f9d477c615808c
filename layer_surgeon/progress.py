"""How long work tells the outside where it is.

The library calls a `Progress`; the command line renders one with rich. `NullProgress`, the default, says nothing.
"""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Receives what a long piece of work reports about itself.

    Steps don't nest: one `begin`, any number of `advance` and `metrics`, one `end`.
    """

    def begin(self, description: str, total: int | None, unit: str) -> None:
        """Start a step of `total` units (None: unknown). `unit` is a plural noun: "bytes", "steps"."""

    def advance(self, amount: int) -> None:
        """Count `amount` more units of the current step as done. A negative amount takes back a failed try."""

    def metrics(self, values: Mapping[str, float]) -> None:
        """Show the newest named values, such as the loss, beside the current step. `memory` is in bytes."""

    def end(self) -> None:
        """Finish the current step."""

    def notice(self, message: str) -> None:
        """Show one line that a person should see, whether or not a step is running."""


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
