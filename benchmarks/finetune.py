"""Measure one epoch of fine-tuning: dynamic and fixed padding, with and without the donor layer.

    python -m benchmarks.finetune --data DIR                   SST-2 (train.csv, validation.csv), all rows, 3 seeds
    python -m benchmarks.finetune --samples 160 --seeds 1      small, on the sentences included in the package

Three arms with real weights (MiniLM and the last layer of Gemma-3-270M, from the packages of the extra [demo]). They
have the same seeds and settings, and take turns in one process:

    ours         the graft with our defaults: batches of similar lengths, padded to the longest text of the batch
    fixed        the same graft with the recipe of the paper's code: random batches, everything padded to 100 tokens
    host alone   the host with the same head and our defaults

The seconds include the validation after the epoch. The table also shows processor seconds, which other work on the
machine affects little. Targets: fixed takes at least 2.5 times as long as ours, the accuracies differ by at most one
standard deviation, and ours takes at most 1.10 times as long as the host alone.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, set_seed

from benchmarks.machine import heading, machine, save, say, table, versions
from layer_surgeon.checkpoint.packaged import local_model
from layer_surgeon.extract import LayerArtifact, extract_layer
from layer_surgeon.finetune import FinetuneConfig, finetune_model
from layer_surgeon.graft import graft_layer
from layer_surgeon.progress import NullProgress
from layer_surgeon.workspace import Workspace

OURS, FIXED, HOST_ALONE = "ours", "fixed", "host alone"
MIN_FIXED_RATIO, MAX_HOST_RATIO = 2.5, 1.10
PACKAGES = ("torch", "transformers", "accelerate")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Models, data and settings of all arms.

    Attributes:
        host: Folder of the host and its tokenizer.
        donor: The donor layer.
        train: Training data for `finetune_model`.
        validation: Validation data. None holds out a part of the training data.
        config: Settings of all arms.
    """

    host: Path
    donor: LayerArtifact
    train: Any
    validation: Any
    config: FinetuneConfig


class Clock(NullProgress):
    """Measures the processor seconds of the training."""

    def __init__(self) -> None:
        self.cpu_seconds, self._start = 0.0, None

    def begin(self, description: str, total: int | None, unit: str) -> None:
        """Start the clock if the step is the training."""
        self._start = time.process_time() if description == "Training" else None

    def end(self) -> None:
        """Stop the clock if the step is the training."""
        if self._start is not None:
            self.cpu_seconds, self._start = time.process_time() - self._start, None


def padding_to(length: int, tokenizer: Any) -> Any:
    """Change a tokenizer to pad every batch to `length` tokens."""
    pad: Callable[..., Any] = tokenizer.pad

    @functools.wraps(pad)
    def fixed(encoded: Any, *_: Any, **settings: Any) -> Any:
        return pad(encoded, **(settings | {"padding": "max_length", "max_length": length}))

    tokenizer.pad = fixed
    return tokenizer


def run_arm(arm: str, seed: int, parts: Parts, folder: Path) -> dict[str, Any]:
    """Train one arm with one seed, and return the results."""
    tokenizer = AutoTokenizer.from_pretrained(parts.host)
    if arm == FIXED:
        tokenizer = padding_to(parts.config.max_length, tokenizer)
    # Parts with random initial weights get the same weights in each arm that has them.
    set_seed(seed)
    clock = Clock()
    result = finetune_model(
        graft_layer(parts.host, None if arm == HOST_ALONE else parts.donor, projection_init="default"),
        parts.train,
        parts.validation,
        config=FinetuneConfig.from_settings(parts.config, {"seed": seed, "group_by_length": arm != FIXED}),
        output=folder / f"{arm.replace(' ', '-')}-{seed}",
        workspace=Workspace(folder),
        tokenizer=tokenizer,
        progress=clock,
    )
    return {
        "arm": arm,
        "seed": seed,
        "seconds": result.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "steps": result.history[-1].step,
        "accuracy": result.validation.scores["accuracy"],
        "training_loss": result.history[-1].training_loss,
        "examples": {name: split["examples"] for name, split in result.data["splits"].items()},
    }


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute medians by arm, and check the targets.

    Args:
        runs: The results of `run_arm` for every arm and seed.
    """
    runs_of = {arm: [run for run in runs if run["arm"] == arm] for arm in (OURS, FIXED, HOST_ALONE)}
    accuracies = {arm: [run["accuracy"] for run in arm_runs] for arm, arm_runs in runs_of.items()}
    deviations = {arm: statistics.stdev(values) if len(values) > 1 else 0.0 for arm, values in accuracies.items()}

    def ratio(numerator: str, denominator: str, key: str) -> float:
        # Compare runs of the same seed, which follow each other: a busy machine slows both.
        pairs = zip(runs_of[numerator], runs_of[denominator], strict=True)
        return statistics.median(a[key] / b[key] for a, b in pairs)

    fixed_ratio, host_ratio = ratio(FIXED, OURS, "seconds"), ratio(OURS, HOST_ALONE, "seconds")
    difference = abs(statistics.fmean(accuracies[OURS]) - statistics.fmean(accuracies[FIXED]))
    return {
        "seconds": {arm: statistics.median(run["seconds"] for run in arm_runs) for arm, arm_runs in runs_of.items()},
        "accuracy": {arm: statistics.fmean(values) for arm, values in accuracies.items()},
        "deviation": deviations,
        "cpu_seconds": {
            arm: statistics.median(run["cpu_seconds"] for run in arm_runs) for arm, arm_runs in runs_of.items()
        },
        "fixed_over_ours": fixed_ratio,
        "ours_over_host_alone": host_ratio,
        "fixed_over_ours_cpu": ratio(FIXED, OURS, "cpu_seconds"),
        "ours_over_host_alone_cpu": ratio(OURS, HOST_ALONE, "cpu_seconds"),
        "accuracy_difference": difference,
        "aims": {
            f"fixed / ours >= {MIN_FIXED_RATIO}": fixed_ratio >= MIN_FIXED_RATIO,
            f"ours / host alone <= {MAX_HOST_RATIO:.2f}": host_ratio <= MAX_HOST_RATIO,
            "accuracy within one deviation": difference <= max(deviations[OURS], deviations[FIXED]),
        },
    }


def show(summary: dict[str, Any]) -> str:
    """Format the summary as a table, with a line for each target."""
    rows = [
        (
            arm,
            f"{summary['seconds'][arm]:.1f} s",
            f"{summary['cpu_seconds'][arm]:.1f} s",
            f"{summary['accuracy'][arm]:.4f}",
            f"{summary['deviation'][arm]:.4f}",
        )
        for arm in summary["seconds"]
    ]
    lines = [table(("arm", "epoch (median)", "processor", "accuracy (mean)", "deviation"), rows), ""]
    lines.append(
        f"fixed / ours {summary['fixed_over_ours']:.2f} (processor {summary['fixed_over_ours_cpu']:.2f}), ours / host "
        f"alone {summary['ours_over_host_alone']:.3f} (processor {summary['ours_over_host_alone_cpu']:.3f}), "
        f"difference in accuracy {summary['accuracy_difference']:.4f}"
    )
    lines += [f"{'met' if met else 'NOT MET'}: {target}" for target, met in summary["aims"].items()]
    return "\n".join(lines)


def extract_donor(folder: Path) -> tuple[Path, LayerArtifact]:
    """Extract the last layer of the donor model; return the host's folder and the layer."""
    layer = extract_layer("packaged:gemma-3-270m", output=folder / "donor")
    return Path(local_model("packaged:all-MiniLM-L6-v2")), layer


def parse(description: str | None, *, samples: int | None, samples_help: str, threads: int) -> argparse.Namespace:
    """Parse the command line of a benchmark of training, and set the number of threads.

    Args:
        description: The benchmark's docstring.
        samples: The default of --samples.
        samples_help: The help text of --samples.
        threads: The default of --threads.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.csv and validation.csv (text,label), or .tsv")
    parser.add_argument("--samples", type=int, default=samples, help=samples_help)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, starting at 2023")
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--output", type=Path, help="write all measurements to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def in_turns(arms: Sequence[str], num_seeds: int) -> Iterator[tuple[int, str]]:
    """Yield seeds and arms, in alternating order, in case the first arm has an advantage or disadvantage."""
    for number in range(num_seeds):
        for arm in sorted(arms, reverse=bool(number % 2)):
            yield 2023 + number, arm


def main() -> None:
    at_most = "use at most this many training and validation examples"
    arguments = parse(__doc__, samples=None, samples_help=at_most, threads=2)
    facts, packages = machine(), versions(*PACKAGES)
    print(heading(facts, packages) + f"; {arguments.threads} threads")
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        host, donor = extract_donor(folder)
        train, validation = find_data(arguments.data)
        limits = {"max_train_samples": arguments.samples, "max_eval_samples": arguments.samples}
        config = FinetuneConfig(num_epochs=1, text_column="text", label_column="label", **limits)
        parts = Parts(host=host, donor=donor, train=train, validation=validation, config=config)
        for seed, arm in in_turns((OURS, FIXED, HOST_ALONE), arguments.seeds):
            runs.append(run_arm(arm, seed, parts, folder / "runs"))
            say(f"{arm}, seed {seed}: {runs[-1]['seconds']:.1f} s, accuracy {runs[-1]['accuracy']:.4f}")
    summary = summarise(runs)
    print(f"{' + '.join(f'{count:,} {name}' for name, count in runs[0]['examples'].items())} examples, one epoch\n")
    print(show(summary))
    document = {"machine": facts, "versions": packages, "threads": arguments.threads, "runs": runs, "summary": summary}
    save(arguments.output, document)


def find_data(folder: Path | None) -> tuple[Any, Any]:
    """Find training and validation data: two files in a folder, or the sentences included in the package."""
    if folder is None:
        return "sentences-imdb", None
    for ending in (".csv", ".tsv"):
        train, validation = folder / f"train{ending}", folder / f"validation{ending}"
        if train.is_file() and validation.is_file():
            return str(train), str(validation)
    raise SystemExit(f"{folder} has no train.csv and validation.csv, and no train.tsv and validation.tsv either.")


if __name__ == "__main__":
    main()
