"""`finetune_seeds`: the same run with several seeds; mean and deviation of what came out."""

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layer_surgeon._io import write_json
from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.processes import is_main_process
from layer_surgeon.finetune.results import FinetuneResult
from layer_surgeon.finetune.run import finetune_model
from layer_surgeon.finetune.sources import DataLike
from layer_surgeon.progress import NullProgress, Progress

SEEDS_FILE = "seeds.json"


@dataclass(frozen=True, kw_only=True)
class SeedsResult:
    """What came out of several runs.

    Attributes:
        seeds: The seeds, in order.
        results: A result for each.
        mean: Of every score of every set, as `FinetuneResult.metrics` names them: the mean over the seeds.
        deviation: The sample standard deviation; 0 of one seed.
        path: The folder that holds the runs' folders and seeds.json; None where the runs lie in the workspace.
    """

    seeds: tuple[int, ...]
    results: tuple[FinetuneResult, ...]
    mean: Mapping[str, float]
    deviation: Mapping[str, float]
    path: Path | None

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "seeds": list(self.seeds),
            "mean": dict(self.mean),
            "deviation": dict(self.deviation),
            "runs": [{"path": str(result.path), "metrics": result.metrics} for result in self.results],
        }


def finetune_seeds(
    model: str | os.PathLike[str],
    train: DataLike,
    validation: DataLike | None = None,
    *,
    num_seeds: int,
    config: FinetuneConfig | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **arguments: Any,
) -> SeedsResult:
    """Fine-tune the same model with the seed of the settings and those after it.

    A seed decides what `finetune_model` says that it decides; the first weights of a stored graft's projections stay.

    Args:
        model: A folder or a repo id, loaded anew for each seed.
        train: As in `finetune_model`.
        validation: As in `finetune_model`.
        num_seeds: How many seeds.
        config: Settings; default: the paper's.
        output: A folder for all of the runs, `seed-<n>` each; default: folders of their own in the workspace.
        progress: Is told about everything.
        arguments: What else `finetune_model` takes, but `resume`.

    Raises:
        ConfigError: The model is a loaded one, or the number of seeds can't be used.
    """
    if not isinstance(model, str | os.PathLike):
        raise ConfigError("Several seeds need a model that is loaded anew for each: give its folder or its repo id.")
    if num_seeds < 1:
        raise ConfigError(f"num_seeds is {num_seeds}; it must be a whole number of at least 1.")
    config, progress = config or FinetuneConfig(), progress or NullProgress()
    folder = None if output is None else Path(output)
    seeds = tuple(range(config.seed, config.seed + num_seeds))
    results = []
    for number, seed in enumerate(seeds, start=1):
        progress.notice(f"Seed {seed} ({number} of {num_seeds}):")
        place = None if folder is None else folder / f"seed-{seed}"
        one = replace(config, seed=seed)
        results.append(
            finetune_model(model, train, validation, config=one, output=place, progress=progress, **arguments)
        )
        # Several models at once might not fit into memory.
        results[-1] = replace(results[-1], model=None)
    scores = {name: [result.metrics[name] for result in results] for name in results[0].metrics}
    outcome = SeedsResult(
        seeds=seeds,
        results=tuple(results),
        mean={name: statistics.fmean(values) for name, values in scores.items()},
        deviation={name: statistics.stdev(values) if num_seeds > 1 else 0.0 for name, values in scores.items()},
        path=folder,
    )
    if folder is not None and is_main_process():
        write_json(folder / SEEDS_FILE, outcome.as_dict())
    return outcome
