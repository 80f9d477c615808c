"""`select_depth`: how many of a donor's first layers to take, by a probe that needs no host and no training.

The donor reads the training texts once, one layer at a time. At each depth, a ridge classifier is fitted in closed form
to the mean states of the texts, and its accuracy is measured by cross-validation. Only the training part is used.
"""

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from layer_surgeon._io import write_json
from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.run import HiddenStates, RunConfig, run_layers
from layer_surgeon.study.data import DataSpec, PreparedData, spec_key
from layer_surgeon.study.layout import FORMAT, StudyFolder
from layer_surgeon.study.plan import StudyPlan, digest_of
from layer_surgeon.study.prepare import prepare_data_set
from layer_surgeon.study.probe import FOLDS, predict_held_out
from layer_surgeon.study.select import spread_rows
from layer_surgeon.tasks import DEFAULT_TASK
from layer_surgeon.workspace import short_name

DEPTHS = "depths.json"
MAX_TEXTS = 2000
NUM_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class DepthScore:
    """The probe's result at one depth.

    Attributes:
        depth: The number of layers.
        accuracy: Cross-validated accuracy, as a mean over the seeds.
        error: Standard error of the accuracy over the texts.
        behind: How much lower it is than the best accuracy.
        behind_error: Standard error of that difference over the texts, which are the same at both depths.
    """

    depth: int
    accuracy: float
    error: float
    behind: float
    behind_error: float


@dataclass(frozen=True, kw_only=True)
class DepthSelection:
    """The result of `select_depth`. depths.json has the same fields.

    Attributes:
        source: The donor.
        data: Name of the data set.
        num_texts: Number of training texts.
        num_layers: The donor's number of layers.
        pool: How a text's states become one: mean or last.
        majority: Share of the most frequent class.
        scores: The probe's results, by depth.
        best: The depth with the highest accuracy, the smallest of several.
        smallest: The smallest depth that is at most one standard error behind the best.
        command: The command that cuts the best stack; None if depth 0 is the best.
        states: The folder of the states.
    """

    source: str
    data: str
    num_texts: int
    num_layers: int
    pool: str
    majority: float
    scores: tuple[DepthScore, ...]
    best: int
    smallest: int
    command: str | None
    states: str


def select_depth(
    source: str | None,
    data: DataSpec,
    output: Path,
    *,
    states: Path | None = None,
    config: RunConfig | None = None,
    num_seeds: int = NUM_SEEDS,
    max_texts: int = MAX_TEXTS,
    progress: Progress | None = None,
) -> DepthSelection:
    """Find out after how many layers a donor's states say most about the classes of texts.

    Args:
        source: The donor, as in `run_layers`. None with `states`.
        data: A data set with one label per text. Only its training part is used.
        output: The folder of the result: the data, the states and depths.json.
        states: The folder of an earlier run that has the training texts, in any order and also among others.
        config: Settings of the run: depths, pooling, dtype, processes.
        num_seeds: Number of cross-validations, each with other folds.
        max_texts: Most training texts, spread evenly over the data set.
        progress: Reports the run and the probes.

    Raises:
        ConfigError: There is neither a donor nor states, or a setting can't be used.
        DataError: The data set can't be used, or the states are those of other texts.
        LayerSurgeonError: As `run_layers`.
    """
    progress, folder = progress or NullProgress(), StudyFolder(root=output)
    if (source is None) == (states is None):
        raise ConfigError("Give either a donor or the states of an earlier run, not both.")
    if num_seeds < 1 or max_texts < 1:
        raise ConfigError(f"num_seeds is {num_seeds} and max_texts is {max_texts}; both must be at least 1.")
    folder.check()
    prepare_data_set(data, folder.data(data.name), StudyPlan.test_fraction, progress, task=DEFAULT_TASK)
    rows = _read_rows(folder.data(data.name), data.name, max_texts)
    if states is None:
        assert source is not None
        config = config or RunConfig()
        key = [source, spec_key(data, StudyPlan.test_fraction), len(rows), asdict(config)]
        name = f"states-{short_name(source)}-{data.name}-{digest_of(key)}"
        texts = [row["text"] for row in rows]
        hidden = run_layers(source, texts, config=config, output=folder.path(name), progress=progress)
    else:
        hidden = HiddenStates.open(states)
    labels = np.asarray([str(row["label"]) for row in rows])
    positions = _find_texts(hidden, rows)
    progress.begin("Probing", len(hidden), "depths")
    correct: dict[int, npt.NDArray[np.float64]] = {}
    for depth in hidden:
        features = _pool(hidden, depth)[positions].double().numpy()
        correct[depth] = np.mean(
            [predict_held_out(features, labels, seed) == labels for seed in range(1, num_seeds + 1)], axis=0
        )
        progress.advance(1)
    progress.end()
    selection = _select(correct, labels, hidden, data.name)
    write_json(folder.path(DEPTHS), {"format": FORMAT, **asdict(selection)})
    return selection


def _read_rows(folder: Path, name: str, max_texts: int) -> list[dict[str, Any]]:
    prepared = PreparedData.open(folder)
    if prepared.pairs or "train" not in prepared.examples:
        raise DataError(
            f"{name} has {'pairs of texts' if prepared.pairs else 'no training part'}; the states of a donor need "
            "single texts with a label. Choose another data set."
        )
    rows = spread_rows(prepared.rows("train"), max_texts)
    counts = Counter(str(row["label"]) for row in rows)
    label, count = min(counts.items(), key=lambda item: item[1])
    if len(counts) < 2 or count < FOLDS:
        raise DataError(
            f"The {len(rows):,} training texts of {name} have {len(counts)} classes, and {count} texts of the class "
            f"{label!r}. The probe needs two classes with at least {FOLDS} texts each. Use more texts."
        )
    return rows


def _find_texts(hidden: HiddenStates, rows: Sequence[dict[str, Any]]) -> list[int]:
    """Find the position of each row's text among the texts of a run."""
    positions = {row["text"]: position for position, row in enumerate(hidden.texts())}
    for number, row in enumerate(rows, start=1):
        if row["text"] not in positions:
            raise DataError(
                f"{hidden.path} has no states of training text {number}, {row['text'][:60]!r}. Run the model on the "
                "training texts of this data set, or leave the states out: then this command runs it."
            )
    return [positions[row["text"]] for row in rows]


def _pool(hidden: HiddenStates, depth: int) -> Tensor:
    """One state per text, [texts, donor_hidden]: those of the run, or the means over its tokens."""
    states = hidden[depth]
    if hidden.pool != "none":
        return states
    lengths = hidden.offsets.diff().tolist()
    return torch.stack([part.float().mean(0) for part in torch.split(states, lengths)])


def _select(
    correct: dict[int, npt.NDArray[np.float64]], labels: npt.NDArray[np.str_], hidden: HiddenStates, data: str
) -> DepthSelection:
    best = max(correct, key=lambda depth: (correct[depth].mean(), -depth))
    scores = []
    for depth, hits in correct.items():
        difference = correct[best] - hits
        scores.append(
            DepthScore(
                depth=depth,
                accuracy=float(hits.mean()),
                error=_standard_error(hits),
                behind=float(difference.mean()),
                behind_error=_standard_error(difference),
            )
        )
    source = hidden.info["source"]
    name = str(source["name"])
    at_revision = f" --revision {source['commit']}" if source["kind"] == "hub" else ""
    return DepthSelection(
        source=name,
        data=data,
        num_texts=len(labels),
        num_layers=int(hidden.info["num_layers"]),
        pool="mean" if hidden.pool == "none" else hidden.pool,
        majority=max(Counter(labels.tolist()).values()) / len(labels),
        scores=tuple(scores),
        best=best,
        smallest=min(score.depth for score in scores if score.behind <= score.behind_error),
        command=f"surgeon extract {shlex.quote(name)}{at_revision} --layer 0:{best} --embeddings" if best else None,
        states=str(hidden.path),
    )


def _standard_error(values: npt.NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))
