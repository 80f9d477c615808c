"""What a selection comes to: its rounds, what it chose, how far ahead that is, and at what cost."""

from collections.abc import Mapping
from dataclasses import dataclass

from layer_surgeon.graft.config import ENCODER_OUTPUT


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One round.

    Attributes:
        name: What was done.
        scores: By arm: mean validation score, or the probe's accuracy.
        kept: The arms that go on, the best first.
        examples: Training examples seen in this rung, over all epochs: its cost.
        seconds: How long the trainings of this rung took, those that were done before included.
    """

    name: str
    scores: Mapping[str, float]
    kept: tuple[str, ...]
    examples: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How far the chosen arm is ahead of the next, on validation data.

    Attributes:
        runner_up: The next arm.
        difference: Mean over the seeds of the paired differences; positive if the chosen arm is better.
        deviation: Their standard deviation from seed to seed; None with one seed.
    """

    runner_up: str
    difference: float
    deviation: float | None

    @property
    def text(self) -> str:
        """In words."""
        if self.deviation is None:
            return f"ahead of {self.runner_up} by {self.difference:.4f}, with one seed"
        close = "; too close to call" if self.difference <= self.deviation else ""
        return (
            f"ahead of {self.runner_up} by {self.difference:.4f}, and by seed that scatters by "
            f"{self.deviation:.4f}{close}"
        )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What was chosen. The fields are those of selection.json, in the same order.

    Attributes:
        best: The arm.
        layers: Its layers.
        site: Where in the host they sit.
        margin: Over the runner-up of the last rung; None if no other arm was left.
        cost: Examples trained on, as a share of what the whole sweep would take.
        time: Seconds as a share of what the whole sweep would take, the probe's included.
        rungs: How it came to that.
        verdict: Of the last rung's study: the chosen arm and the host alone.
        path: The study's folder.
    """

    best: str
    layers: tuple[int, ...]
    site: str | int = ENCODER_OUTPUT
    margin: Margin | None = None
    cost: float
    time: float = 0.0
    rungs: tuple[Rung, ...]
    verdict: str = ""
    path: str = ""
