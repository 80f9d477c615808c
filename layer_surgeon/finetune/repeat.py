"""`finetune_seeds`: repeat a run with several seeds; mean and standard deviation of the scores."""

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from layer_surgeon._folders import expand_home
from layer_surgeon._io import write_json
from layer_surgeon._launched import is_main_process
from layer_surgeon.errors import ConfigError, WorkspaceError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.folder import check_free
from layer_surgeon.finetune.results import FinetuneResult
from layer_surgeon.finetune.run import finetune_model
from layer_surgeon.finetune.sources import STDIN, DataLike
from layer_surgeon.progress import NullProgress, Progress

SEEDS_FILE = "seeds.json"


@dataclass(frozen=True, kw_only=True)
class SeedsResult:
    """The results of several runs.

    Attributes:
        seeds: The seeds, in order.
        results: One result per seed.
        mean: Mean of every score over the seeds, under the names of `FinetuneResult.metrics`.
        deviation: Sample standard deviation of every score; 0 for a single seed.
        path: The folder with the run folders and seeds.json; None if the runs are in the workspace.
    """

    seeds: tuple[int, ...]
    results: tuple[FinetuneResult, ...]
    mean: Mapping[str, float]
    deviation: Mapping[str, float]
    path: Path | None

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
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
    """Fine-tune a model with `config.seed` and the seeds after it.

    The docstring of `finetune_model` says what a seed determines. The initial weights of a stored graft's projections
    are the same for all seeds.

    Args:
        model: A folder or a repo id. The model is loaded again for each seed.
        train: As in `finetune_model`.
        validation: As in `finetune_model`.
        num_seeds: Number of seeds.
        config: Settings. Default: the paper's.
        output: Parent folder of the runs, which are called `seed-<n>`. Default: separate folders in the workspace.
        progress: Receives the progress of all runs.
        arguments: Other arguments of `finetune_model`, except `resume`.

    Raises:
        ConfigError: The model is already loaded, `num_seeds` is below 1, or seeds would read stdin.
        WorkspaceError: A seed's folder can't be used.
    """
    if not isinstance(model, str | os.PathLike):
        raise ConfigError("The model must be loaded again for each seed. Pass its folder or repo id.")
    if num_seeds < 1:
        raise ConfigError(f"num_seeds is {num_seeds}; it must be a whole number of at least 1.")
    names = {field.name for field in fields(FinetuneConfig)}
    settings = {name: arguments.pop(name) for name in names & set(arguments)}
    config, progress = FinetuneConfig.from_settings(config, settings), progress or NullProgress()
    folder = None if output is None else Path(expand_home(output))
    seeds = tuple(range(config.seed, config.seed + num_seeds))
    check_seeds((train, validation, arguments.get("test")), seeds, folder)
    results = []
    for number, seed in enumerate(seeds, start=1):
        progress.notice(f"Seed {seed} ({number} of {num_seeds}):")
        run_folder = None if folder is None else seed_folder(folder, seed)
        seed_config = replace(config, seed=seed)
        try:
            result = finetune_model(
                model, train, validation, config=seed_config, output=run_folder, progress=progress, **arguments
            )
        except KeyboardInterrupt as error:
            if "--resume" not in str(error):
                raise
            place = "" if run_folder is None else f" --output {run_folder}"
            advice = f"(without --seeds, but with --seed {seed}{place})"
            raise KeyboardInterrupt(f"{str(error).removesuffix('.')} {advice}.") from error
        # Drop the model, because several might not fit into memory.
        results.append(replace(result, model=None))
        del result
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


def check_seeds(data: Iterable[Any], seeds: Sequence[int], output: str | os.PathLike[str] | None) -> None:
    """Check before the first run what would fail in a later one.

    Args:
        data: Training, validation and test data.
        seeds: The seeds.
        output: The parent folder of their runs; None for folders in the workspace.

    Raises:
        ConfigError: Several seeds would read stdin.
        WorkspaceError: A seed's folder can't be used.
    """
    names = [name for part in data for name in (part if isinstance(part, list | tuple) else [part])]
    if len(seeds) > 1 and any(isinstance(name, str) and name == STDIN for name in names):
        raise ConfigError("Data from stdin can be read only once, and each seed reads it. Save it in a file.")
    if output is not None and is_main_process():
        if (Path(expand_home(output)) / SEEDS_FILE).exists():
            raise WorkspaceError(f"{output} has the {SEEDS_FILE} of other runs. Choose another folder with --output.")
        for seed in seeds:
            check_free(seed_folder(output, seed))


def seed_folder(output: str | os.PathLike[str], seed: int) -> Path:
    """Return the folder of the run with a seed, below the parent folder of all runs."""
    return Path(expand_home(output)) / f"seed-{seed}"
