"""What a selection comes to: its rounds, what it chose, how far ahead that is, and at what cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from layer_surgeon.study.compare import StudyResult


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One round.

    Attributes:
        name: What was done.
        scores: By arm: mean validation score, or the probe's accuracy.
        kept: The arms that go on, the best first.
        examples: Training examples seen in this rung, over all epochs: its cost.
        seconds: Likewise; trainings that were there already count as what they took.
    """

    name: str
    scores: Mapping[str, float]
    kept: tuple[str, ...]
    examples: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How far the chosen one is ahead of the next, on validation data.

    Attributes:
        runner_up: The other one.
        difference: Mean over the seeds of the paired differences; positive: the chosen one is better.
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
class SelectionResult:
    """What was chosen.

    Attributes:
        best: The arm.
        layers: Its layers.
        site: Where in the host they sit.
        rungs: How it came to that.
        margin: Over the runner-up of the last rung; None: there was none left.
        cost: Examples trained on, as a share of what the whole sweep would take.
        time: Seconds likewise, the probe's included.
        study: The last rung's study: the chosen arm and the host alone, with statistics.
    """

    best: str
    layers: tuple[int, ...]
    site: str | int
    rungs: tuple[Rung, ...]
    margin: Margin | None
    cost: float
    time: float
    study: StudyResult

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "format": 1,
            "best": self.best,
            "layers": list(self.layers),
            "site": self.site,
            "margin": None if self.margin is None else asdict(self.margin),
            "cost": self.cost,
            "time": self.time,
            "rungs": [asdict(rung) | {"kept": list(rung.kept)} for rung in self.rungs],
            "verdict": self.study.summary["verdict"],
            "path": str(self.study.path),
        }
