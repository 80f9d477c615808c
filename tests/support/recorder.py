"""A `Progress` that remembers what it was told."""

from collections.abc import Mapping

from layer_surgeon.progress import NullProgress


class Recorder(NullProgress):
    """Remembers what it was told.

    Attributes:
        steps: What each step was called, its length and its unit.
        amounts: How much of each step was done.
        ended: How many steps ended.
        values: All named values.
        notices: All lines for a person.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[str, int | None, str]] = []
        self.amounts: list[int] = []
        self.ended = 0
        self.values: list[dict[str, float]] = []
        self.notices: list[str] = []

    @property
    def total(self) -> int | None:
        """The length of the latest step; None where it is unknown or none began."""
        return self.steps[-1][1] if self.steps else None

    @property
    def done(self) -> int:
        """How much of the latest step was done."""
        return self.amounts[-1] if self.amounts else 0

    def begin(self, description: str, total: int | None, unit: str) -> None:
        self.steps.append((description, total, unit))
        self.amounts.append(0)

    def advance(self, amount: int) -> None:
        self.amounts[-1] += amount

    def metrics(self, values: Mapping[str, float]) -> None:
        self.values.append(dict(values))

    def end(self) -> None:
        self.ended += 1

    def notice(self, message: str) -> None:
        self.notices.append(message)
