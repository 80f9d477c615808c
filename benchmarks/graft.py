"""A training step of BERT-base grafted with a layer of Llama-3.1-8B's shape, beside one of the host alone.

    python -m benchmarks.graft                     8 steps each, batch 32, 100 tokens, 2 threads
    python -m benchmarks.graft --steps 3 --no-memory

Both models have random weights of the real shapes. A step is forward, backward and AdamW; steps take turns in one
process, so that a busy machine slows both, and medians and the median of the ratios of neighbours are shown. Forward
and backward are shown apart too. Peak memory is that of new processes that take two steps, one for each donor format,
beyond the interpreter with torch and transformers. The aim is a ratio of at most 1.10.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from transformers import BertConfig

from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.configuration import SurgeonGraftConfig
from layer_surgeon.graft.flops import training_loss
from layer_surgeon.graft.measure import Workload, example_inputs, measure, new_model
from layer_surgeon.graft.shapes import graft_config, without_donor
from tests.support.checkpoints import LLAMA_8B

AIM = 1.10


def arms(donor_dtype: str = "float32") -> dict[str, SurgeonGraftConfig]:
    """The host alone, and the graft."""
    config = graft_config(BertConfig(), LLAMA_8B, config=GraftConfig(donor_dtype=donor_dtype))
    return {"host alone": without_donor(config), "grafted": config}


def phases(config: SurgeonGraftConfig, workload: Workload) -> Callable[[], dict[str, float]]:
    """A function that takes one training step and says how long its phases took."""
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
    """Take turns and print medians."""
    steps = {name: phases(config, workload) for name, config in arms(donor_dtype).items()}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for number in range(workload.repeats + 1):
        # Whoever goes first in a pair may profit or suffer from it.
        for name in sorted(steps, reverse=bool(number % 2)):
            taken = steps[name]()
            if number:
                results[name].append(taken)
    print(f"\n{'donor ' + donor_dtype:18} {'host alone':>11} {'grafted':>11} {'ratio':>7}")
    for phase in ("forward", "backward", "update", "step"):
        alone, grafted = ([taken[phase] for taken in results[name]] for name in ("host alone", "grafted"))
        ratio = statistics.median(after / before for before, after in zip(alone, grafted, strict=True))
        verdict = f"  {'within' if ratio <= AIM else 'ABOVE'} {AIM:.2f}" if phase == "step" else ""
        medians = [statistics.median(values) for values in (alone, grafted)]
        print(f"{phase:18} {medians[0]:9.3f} s {medians[1]:9.3f} s {ratio:5.3f} x{verdict}")


def compare_memory(workload: Workload) -> None:
    """Print peak memory of training by number format of the donor."""
    workload = Workload(**{**vars(workload), "repeats": 1})
    rows: dict[str, Any] = {"host alone": arms()["host alone"]}
    rows |= {f"grafted, donor {dtype}": arms(dtype)["grafted"] for dtype in ("float32", "bfloat16")}
    print(f"\n{'peak memory':24} {'forward':>10} {'training':>10}")
    for name, config in rows.items():
        result = measure(config, workload)
        print(f"{name:24} {result.forward_peak_bytes / 1e9:7.2f} GB {result.training_peak_bytes / 1e9:7.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--donor-dtype", default="float32")
    parser.add_argument("--no-memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}: {arguments.steps} steps, batch {arguments.batch}, {arguments.length} tokens, "
        f"{arguments.threads} threads"
    )
    workload = Workload(batch=arguments.batch, length=arguments.length, device="cpu", repeats=arguments.steps)
    compare_times(workload, arguments.donor_dtype)
    if not arguments.no_memory:
        compare_memory(workload)


if __name__ == "__main__":
    main()
