"""Measure one epoch of fine-tuning a graft whose donor reads text, with and without kept states.

    python -m benchmarks.states --data DIR        SST-2 (train.csv, validation.csv), 692 and 200 examples, 3 seeds
    python -m benchmarks.states --samples 64      small, on the sentences included in the package

Real weights: MiniLM, and the embeddings and first nine layers of Gemma-3-270M, from the packages of the extra [demo].
These arms have the same seeds and settings, and take turns in one process:

    host alone   the host with the same head
    kept         the graft; the donor's states are computed before the first epoch, and kept
    computed     the graft with cache_states=False: the donor reads each text alone, in every epoch
    in batches   the graft as its own forward runs it: the donor reads padded batches, in every epoch

The processor seconds are of the epoch with its validation; other work on the machine affects them little. The time in
which the donor reads all texts before the first epoch is listed apart. Targets: an epoch with kept states takes at most
1.10 times as long as one of the host alone; kept and computed give the same weights, bit for bit.
"""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import set_seed

from benchmarks.finetune import find_data, in_turns, parse
from benchmarks.machine import heading, machine, save, say, table, versions
from layer_surgeon.checkpoint.packaged import local_model
from layer_surgeon.extract import extract_layer
from layer_surgeon.finetune import FinetuneConfig, finetune_model
from layer_surgeon.finetune.donor_states import StateCache
from layer_surgeon.graft import graft_layer
from layer_surgeon.progress import NullProgress
from layer_surgeon.workspace import DONOR_STATES, Workspace

HOST_ALONE, KEPT, COMPUTED, IN_BATCHES = "host alone", "kept", "computed", "in batches"
ARMS = (HOST_ALONE, KEPT, COMPUTED, IN_BATCHES)
MAX_HOST_RATIO = 1.10
PACKAGES = ("torch", "transformers")


class Clock(NullProgress):
    """Measures the processor seconds of each step."""

    def __init__(self) -> None:
        self.cpu_seconds: dict[str, float] = {}
        self._step, self._start = "", 0.0

    def begin(self, description: str, total: int | None, unit: str) -> None:
        """Start the clock of a step."""
        self._step, self._start = description, time.process_time()

    def end(self) -> None:
        """Stop the clock."""
        if self._step:
            self.cpu_seconds[self._step] = time.process_time() - self._start
        self._step = ""


@contextmanager
def conditions(arm: str) -> Iterator[None]:
    """Let the model itself run the donor, for the arm that does."""
    if arm != IN_BATCHES:
        yield
        return
    with mock.patch.object(StateCache, "attach"):
        yield


def run_arm(arm: str, seed: int, host: Path, stack: Path, data: Any, config: FinetuneConfig, folder: Path) -> Any:
    """Train one arm with one seed, and return the results."""
    set_seed(seed)
    clock = Clock()
    settings = {} if arm == HOST_ALONE else {"donor_reads": "text"}
    with conditions(arm):
        result = finetune_model(
            graft_layer(host, None if arm == HOST_ALONE else stack, **settings),
            *data,
            config=FinetuneConfig.from_settings(config, {"seed": seed, "cache_states": arm == KEPT}),
            output=folder / f"{arm.replace(' ', '-')}-{seed}",
            workspace=Workspace(folder),
            tokenizer=str(host),
            progress=clock,
        )
    digest = hashlib.sha256()
    for _, weight in sorted(result.model.state_dict().items()):
        digest.update(weight.contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        "arm": arm,
        "seed": seed,
        "cpu_seconds": clock.cpu_seconds["Training"],
        "reading_cpu_seconds": clock.cpu_seconds.get("The donor reads the texts, once", 0.0),
        "accuracy": result.validation.scores["accuracy"],
        "loss": result.validation.scores["loss"],
        "weights": digest.hexdigest(),
        "examples": {name: split["examples"] for name, split in result.data["splits"].items()},
    }


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute medians by arm, and check the targets."""
    runs_of = {arm: [run for run in runs if run["arm"] == arm] for arm in ARMS}
    ratios = {
        # Compare runs of the same seed, which follow each other: a busy machine slows both.
        arm: statistics.median(
            run["cpu_seconds"] / host["cpu_seconds"] for run, host in zip(of_arm, runs_of[HOST_ALONE], strict=True)
        )
        for arm, of_arm in runs_of.items()
    }
    equal = [a["weights"] == b["weights"] for a, b in zip(runs_of[KEPT], runs_of[COMPUTED], strict=True)]
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(runs_of[KEPT], runs_of[IN_BATCHES], strict=True)]
    return {
        "cpu_seconds": {
            arm: statistics.median(run["cpu_seconds"] for run in of_arm) for arm, of_arm in runs_of.items()
        },
        "over_host_alone": ratios,
        "accuracy": {arm: statistics.fmean(run["accuracy"] for run in of_arm) for arm, of_arm in runs_of.items()},
        "reading_cpu_seconds": max(run["reading_cpu_seconds"] for run in runs_of[KEPT]),
        "largest_difference_in_loss_in_batches": max(differences),
        "aims": {
            f"kept / host alone <= {MAX_HOST_RATIO:.2f}": ratios[KEPT] <= MAX_HOST_RATIO,
            "kept and computed give the same weights, bit for bit": all(equal),
        },
    }


def show(summary: dict[str, Any], num_bytes: int) -> str:
    """Format the summary as a table, with a line for each target."""
    rows = [
        (
            arm,
            f"{summary['cpu_seconds'][arm]:.1f} s",
            f"{summary['over_host_alone'][arm]:.2f}",
            f"{summary['accuracy'][arm]:.4f}",
        )
        for arm in ARMS
    ]
    lines = [
        table(("arm", "epoch, processor (median)", "over host alone", "accuracy (mean)"), rows),
        "",
        f"The donor reads all texts of the first seed in {summary['reading_cpu_seconds']:.1f} s of processor time. The "
        f"states of all seeds take {num_bytes:,} bytes. In batches, the validation loss differs by at most "
        f"{summary['largest_difference_in_loss_in_batches']:.1e}.",
    ]
    lines += [f"{'met' if met else 'NOT MET'}: {target}" for target, met in summary["aims"].items()]
    return "\n".join(lines)


def main() -> None:
    arguments = parse(__doc__, samples=692, samples_help="number of training examples", threads=1)
    facts, packages = machine(), versions(*PACKAGES)
    print(heading(facts, packages) + f"; {arguments.threads} threads")
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        host = Path(local_model("packaged:all-MiniLM-L6-v2"))
        stack = extract_layer(
            "packaged:gemma-3-270m",
            layer=list(range(9)),
            output=folder / "stack",
            embeddings=True,
            vocabulary="packaged:all-MiniLM-L6-v2",
        ).path
        limits = {"max_train_samples": arguments.samples, "max_eval_samples": 200}
        config = FinetuneConfig(num_epochs=1, text_column="text", label_column="label", **limits)
        data = find_data(arguments.data)
        for seed, arm in in_turns(ARMS, arguments.seeds):
            runs.append(run_arm(arm, seed, host, stack, data, config, folder / "runs"))
            say(f"{arm}, seed {seed}: {runs[-1]['cpu_seconds']:.1f} s, accuracy {runs[-1]['accuracy']:.4f}")
        files = (folder / "runs" / DONOR_STATES).glob("*/*.safetensors")
        num_bytes = sum(path.stat().st_size for path in files)
    summary = summarise(runs)
    print(f"{' + '.join(f'{count:,} {name}' for name, count in runs[0]['examples'].items())} examples, one epoch\n")
    print(show(summary, num_bytes))
    document = {"machine": facts, "versions": packages, "threads": arguments.threads, "runs": runs, "summary": summary}
    save(arguments.output, document)


if __name__ == "__main__":
    main()
