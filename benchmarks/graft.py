"""Measure a training step of BERT-base, alone and grafted with a layer of Llama-3.1-8B's shape.

    python -m benchmarks.graft                     8 steps each, batch 32, 100 tokens, 2 threads
    python -m benchmarks.graft --steps 3 --no-memory
    python -m benchmarks.graft --formats           number formats of the donor: accuracy, memory, time
    python -m benchmarks.graft --loading           peak memory of loading a stored graft

Both models have random weights of the real shapes. A step is forward, backward and AdamW. The models take turns in one
process, so a busy machine slows both. The table shows the median times of each phase, and the median ratio of
neighbouring steps. Peak memory is measured in a new process per donor format, which takes two steps; the interpreter
with torch and transformers is not included. The target is a ratio of at most 1.10.

--formats shows the error of Gemma 3 270M's last layer (real weights, from the extra demo) compared with float32, as a
share of what the layer adds to its input. It also shows bytes and time of a layer of Llama-3.1-8B's shape, forward and
backward, for 32 texts of one position and 4 texts of 100. --loading shows the peak memory of a new process, without
torch and transformers, that loads a graft of BERT-base and reads its weights. The target is 1.15 x the weights.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from benchmarks.machine import heading, machine, versions
from layer_surgeon.cost.flops import training_loss
from layer_surgeon.cost.measure import Workload, example_inputs, measure, new_model
from layer_surgeon.cost.shapes import graft_config, without_donor
from layer_surgeon.donor import DonorLayer, SurgeonDonorConfig
from layer_surgeon.extract import extract_layer
from layer_surgeon.graft.build import graft_layer
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from tests.support.checkpoints import LLAMA_8B

MAX_STEP_RATIO = 1.10
MAX_LOADING_RATIO = 1.15
FORMATS = ("float32", "bfloat16")


def arms(donor_dtype: str = "float32") -> dict[str, SurgeonGraftConfig]:
    """Configs of the host alone and of the graft."""
    config = graft_config(BertConfig(), LLAMA_8B, config=GraftConfig(donor_dtype=donor_dtype))
    return {"host alone": without_donor(config), "grafted": config}


def phases(config: SurgeonGraftConfig, workload: Workload) -> Callable[[], dict[str, float]]:
    """Make a function that takes one training step and returns the seconds of its phases."""
    model = new_model(config, workload, torch.device("cpu")).train()
    inputs = example_inputs(model, workload, labels=True)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-5)

    def step() -> dict[str, float]:
        times = [time.perf_counter()]
        loss = training_loss(model(**inputs))
        times.append(time.perf_counter())
        torch.autograd.backward(loss)
        times.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter())
        forward, backward, update = (after - before for before, after in pairwise(times))
        return {"forward": forward, "backward": backward, "update": update, "step": times[-1] - times[0]}

    return step


def compare_times(workload: Workload, donor_dtype: str) -> None:
    """Run both arms in turn, and print median times."""
    steps = {name: phases(config, workload) for name, config in arms(donor_dtype).items()}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for number in range(workload.repeats + 1):
        # Alternate the order, in case the first arm has an advantage or disadvantage.
        for name in sorted(steps, reverse=bool(number % 2)):
            phase_seconds = steps[name]()
            if number:
                results[name].append(phase_seconds)
    print(f"\n{'donor ' + donor_dtype:18} {'host alone':>11} {'grafted':>11} {'ratio':>7}")
    for phase in ("forward", "backward", "update", "step"):
        alone, grafted = ([step[phase] for step in results[name]] for name in ("host alone", "grafted"))
        ratio = statistics.median(after / before for before, after in zip(alone, grafted, strict=True))
        verdict = (
            f"  {'within' if ratio <= MAX_STEP_RATIO else 'ABOVE'} {MAX_STEP_RATIO:.2f}" if phase == "step" else ""
        )
        medians = [statistics.median(values) for values in (alone, grafted)]
        print(f"{phase:18} {medians[0]:9.3f} s {medians[1]:9.3f} s {ratio:5.3f} x{verdict}")


def compare_memory(workload: Workload) -> None:
    """Print the peak memory of training for each number format of the donor."""
    workload = replace(workload, repeats=1)
    rows: dict[str, Any] = {"host alone": arms()["host alone"]}
    rows |= {f"grafted, donor {dtype}": arms(dtype)["grafted"] for dtype in FORMATS}
    print(f"\n{'peak memory':24} {'forward':>10} {'training':>10}")
    for name, config in rows.items():
        result = measure(config, workload)
        print(f"{name:24} {result.forward_peak_bytes / 1e9:7.2f} GB {result.training_peak_bytes / 1e9:7.2f} GB")


def compare_formats() -> None:
    """Print the error, the memory and the time of each number format of a donor."""
    torch.manual_seed(0)
    print(f"\n{'Gemma 3 270M, last layer':26} {'largest error':>14} {'mean error':>11}")
    with tempfile.TemporaryDirectory() as folder:
        artifact = extract_layer("packaged:gemma-3-270m", -1, Path(folder, "layer"))
        reference = DonorLayer.from_pretrained(artifact.path, dtype="float32")
        states = torch.randn(8, 32, reference.hidden_size) * 10  # about as large as the hidden states of this model
        with torch.no_grad():
            expected = reference(states)
            for name in FORMATS:
                error = (DonorLayer.from_pretrained(artifact.path, dtype=name)(states) - expected).abs()
                added = (expected - states).abs()
                print(f"{name:26} {error.max() / added.max():13.2%} {error.mean() / added.mean():10.2%}")
    print(f"\n{'Llama-3.1-8B, one layer':26} {'weights':>14} {'32 x 1':>11} {'4 x 100':>14}")
    config = SurgeonDonorConfig(donor_config=LLAMA_8B, layer_indices=[31])
    with tempfile.TemporaryDirectory() as folder:
        DonorLayer.from_config(config, dtype="bfloat16").save_pretrained(folder)
        for name in FORMATS:
            donor = DonorLayer.from_pretrained(folder, dtype=name)
            times = [pass_seconds(donor, torch.randn(*shape, donor.hidden_size)) for shape in ((32, 1), (4, 100))]
            print(f"{name:26} {weight_bytes(donor) / 1e6:11.1f} MB {times[0]:9.3f} s {times[1]:12.2f} s")


def weight_bytes(model: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def pass_seconds(donor: DonorLayer, states: torch.Tensor) -> float:
    """Median seconds of three forward and backward passes, after one warm-up pass."""
    states.requires_grad_()
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        donor(states).sum().backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def compare_loading() -> None:
    """Print the peak memory of loading for each number format, each in a new process."""
    print(f"\n{'loading, donor':26} {'weights':>11} {'peak':>11} {'ratio':>7}")
    config = SurgeonDonorConfig(donor_config=LLAMA_8B, layer_indices=[31])
    with tempfile.TemporaryDirectory() as folder:
        DonorLayer.from_config(config, dtype="bfloat16").save_pretrained(Path(folder, "layer"))
        for name in FORMATS:
            graft = Path(folder, name)
            graft_layer(BertModel(BertConfig()), Path(folder, "layer"), donor_dtype=name).save_pretrained(graft)
            command = [sys.executable, "-c", _LOAD, str(graft)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            weights, peak = (int(number) for number in done.stdout.split()[-2:])
            verdict = f"{'within' if peak <= MAX_LOADING_RATIO * weights else 'ABOVE'} {MAX_LOADING_RATIO}"
            print(f"{name:26} {weights / 1e6:8.1f} MB {peak / 1e6:8.1f} MB {peak / weights:5.2f} x  {verdict}")


_LOAD = """
import sys, torch, transformers
from transformers import AutoModelForSequenceClassification, BertModel
from benchmarks.graft import weight_bytes
from layer_surgeon.cost.measure import status_bytes
before = status_bytes("VmRSS")
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
for parameter in model.parameters():
    for part in [parameter.qdata] if hasattr(parameter, "qdata") else [parameter]:
        part.view(-1)[::512].sum()  # pages of a mapped file only count once they are read
print(weight_bytes(model), status_bytes("VmHWM") - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--donor-dtype", default="float32")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--formats", action="store_true")
    parser.add_argument("--loading", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(heading(machine(), versions("torch", "transformers")))
    print(f"{arguments.steps} steps, batch {arguments.batch}, {arguments.length} tokens, {arguments.threads} threads")
    if arguments.formats:
        compare_formats()
    if arguments.loading:
        compare_loading()
    if arguments.formats or arguments.loading:
        return
    workload = Workload(batch=arguments.batch, length=arguments.length, device="cpu", repeats=arguments.steps)
    compare_times(workload, arguments.donor_dtype)
    if not arguments.no_memory:
        compare_memory(workload)


if __name__ == "__main__":
    main()
