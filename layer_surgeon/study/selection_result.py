"""The typed result of a selection: its rungs, its choice, the margin over the runner-up, and the cost."""

from collections.abc import Mapping
from dataclasses import dataclass

from layer_surgeon.graft.config import ENCODER_OUTPUT


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One round of a selection.

    Attributes:
        name: A description of the round.
        scores: Arm -> mean validation score, or accuracy of the probe.
        kept: The arms that stay, best first.
        examples: The cost: number of training examples in this rung, over all epochs.
        seconds: Duration of this rung's trainings, including those that were already finished.
    """

    name: str
    scores: Mapping[str, float]
    kept: tuple[str, ...]
    examples: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Margin:
    """The margin of the chosen arm over the second best, on validation data.

    Attributes:
        runner_up: The second-best arm.
        difference: Mean of the paired differences over the seeds; positive if the chosen arm is better.
        deviation: Standard deviation of these differences over the seeds; None with one seed.
    """

    runner_up: str
    difference: float
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The result of a selection. The fields are those of selection.json, in the same order.

    Attributes:
        best: The chosen arm.
        layers: The donor layers of the chosen arm.
        site: The graft site in the host.
        margin: The margin over the runner-up of the last rung; None if no other arm was left.
        cost: Number of training examples, as a share of what the whole sweep would need.
        time: Seconds, including those of the probe, as a share of what the whole sweep would need.
        rungs: The rounds that led to the choice.
        verdict: The verdict of the final study, which compares the chosen arm with the host alone.
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
