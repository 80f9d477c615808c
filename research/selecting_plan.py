"""What `benchmarks.selecting` trains: all of it fixed before any sweep was run."""

from collections.abc import Sequence
from pathlib import Path

from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.sweep import with_layers

DATA = ("sst2", "tweet_offensive")
ROWS = {"train": 600, "validation": 400, "test": 1000}
LAYERS = range(18)
SEEDS = (2023, 2024, 2025)
SELECTIONS = 5
SETTINGS = {
    "finetune": {
        "train_host": "frozen",
        "num_epochs": 3,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "max_length": 64,
    },
    "graft": {"pooling": "mean"},
}
HOST = "packaged:all-MiniLM-L6-v2"
DONOR = "packaged:gemma-3-270m"


def plan(work: Path, data: str, seeds: Sequence[int]) -> StudyPlan:
    """A sweep over all layers."""
    content = {
        "name": data,
        "host": str(work / "host"),
        "donor": DONOR,
        "data": [str(work / "data" / data)],
        "seeds": list(seeds),
        **SETTINGS,
    }
    return StudyPlan.from_dict(with_layers(content, list(LAYERS)))
