"""Measure mixed-precision training of BERT-base on a GPU, alone and with a layer of Llama-3.1-8B's shape.

    python -m benchmarks.gpu                                   20 steps each, batch 32, 100 tokens, bf16
    python -m benchmarks.gpu --device cpu --layers 2 --steps 2 --batch 4

The weights are random and have the real shapes; neither time nor memory depends on their values. The script needs no
files, and only torch, transformers, accelerate, safetensors, numpy and lazy_loader (run it from the root). Trained
weights are float32; the donor layer's weights have the precision of the computation. A step is forward, backward,
clipping and Adam, as in fine-tuning.

Each arm runs in a separate process to measure its peak memory. On a GPU, this is the memory that torch allocated; on
the CPU, the resident memory of the process without that of the interpreter. Finally, a few steps without dropout run on
the device and, with the same weights and inputs, on the CPU in float32. The losses must agree.
"""

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, set_seed

from benchmarks.machine import heading, machine, save, say, table, versions
from layer_surgeon.cost.flops import training_loss
from layer_surgeon.cost.measure import Workload, new_model, peak_of
from layer_surgeon.cost.shapes import graft_config, without_donor
from layer_surgeon.graft.config import DonorDtype, GraftConfig
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from tests.support.checkpoints import LLAMA_8B

HOST_ALONE, GRAFTED = "host alone", "grafted"
PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")
DTYPES: dict[str, DonorDtype] = {"fp32": "float32", "bf16": "bfloat16"}
# Allowed difference from float32 on the CPU, relative to the first loss (later losses go to 0). Rounding to bf16
# changes a number by up to 2^-9 (0.002), and a step rounds thousands of times.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
MAX_GRAD_NORM, LEARNING_RATE, SEED = 5.0, 5e-5, 2023
WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What to measure.

    Attributes:
        device: cpu or cuda.
        precision: fp32, or bf16 with autocast.
        layers: Number of layers of the host; BERT-base has 12.
        batch: Texts per batch.
        length: Tokens per text.
        steps: Number of timed steps, after two warm-up steps.
        donor: The donor model's config.
        host: Settings of the host's config other than its number of layers.
    """

    device: str
    precision: str = "bf16"
    layers: int = 12
    batch: int = 32
    length: int = 100
    steps: int = 20
    donor: Any = None
    host: Any = None

    def config(self, arm: str) -> SurgeonGraftConfig:
        """The config of an arm."""
        host = BertConfig(num_hidden_layers=self.layers, **(self.host or {}))
        settings = GraftConfig(donor_dtype=DTYPES[self.precision])
        grafted = graft_config(host, self.donor or LLAMA_8B, config=settings)
        return without_donor(grafted) if arm == HOST_ALONE else grafted

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the forward pass runs."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, dtype=getattr(torch, DTYPES[self.precision]))


def take_steps(setting: Setting, arm: str, count: int, *, dropout: bool) -> list[tuple[float, float]]:
    """Train a new model, and return the loss and the seconds of every step.

    Weights and inputs are created on the CPU, so they are the same for every device.
    """
    set_seed(SEED)
    device = torch.device(setting.device)
    model = new_model(setting.config(arm), Workload(), torch.device("cpu"))
    inputs = {name: value.to(device) for name, value in new_inputs(setting).items()}
    model.to(device).train(dropout)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    losses_and_seconds = []
    for _ in range(count):
        _wait(device)
        start = time.perf_counter()
        with setting.autocast():
            loss = training_loss(model(**inputs))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(device)
        losses_and_seconds.append((loss.item(), time.perf_counter() - start))
    return losses_and_seconds


def new_inputs(setting: Setting) -> dict[str, torch.Tensor]:
    """Make a batch of random tokens without padding, half of each class."""
    shape = (setting.batch, setting.length)
    ids = torch.randint(1000, 30_000, shape, generator=torch.Generator().manual_seed(SEED))
    vocabulary = (setting.host or {}).get("vocab_size")
    ids = ids if vocabulary is None else ids % vocabulary
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(setting.batch) % 2}


def measure_arm(setting: Setting, arm: str) -> dict[str, Any]:
    """Measure the step time and the peak memory of one arm in this process."""
    peak = peak_of(torch.device(setting.device))
    steps = take_steps(setting, arm, WARM_UP + setting.steps, dropout=True)
    seconds = [step_seconds for _, step_seconds in steps][WARM_UP:]
    return {
        "arm": arm,
        "step_seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "peak_bytes": peak(),
    }


def check_losses(setting: Setting, steps: int) -> dict[str, Any]:
    """Compare losses on the device, in float32 and in the setting's precision, with the CPU's; without dropout."""

    def losses(device: str, precision: str) -> list[float]:
        device_setting = replace(setting, device=device, precision=precision)
        return [loss for loss, _ in take_steps(device_setting, GRAFTED, steps, dropout=False)]

    expected = losses("cpu", "fp32")
    result: dict[str, Any] = {"cpu fp32": expected, "differences": {}, "tolerance": TOLERANCE}
    for precision in dict.fromkeys(("fp32", setting.precision)):
        actual = losses(setting.device, precision)
        result[f"{setting.device} {precision}"] = actual
        result["differences"][precision] = max(abs(a - b) for a, b in zip(actual, expected, strict=True)) / expected[0]
    result["agrees"] = all(value <= TOLERANCE[name] for name, value in result["differences"].items())
    return result


def call_in_new_process(function: Any, *arguments: Any) -> Any:
    """Call a function in a new process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(arms: list[dict[str, Any]], check: dict[str, Any]) -> str:
    """Format the results as a table, with lines about the losses."""
    rows = [
        (
            arm["arm"],
            f"{arm['step_seconds'] * 1e3:.1f} ms",
            f"{arm['fastest'] * 1e3:.1f}-{arm['slowest'] * 1e3:.1f}",
            f"{arm['peak_bytes'] / 1e9:.2f} GB",
        )
        for arm in arms
    ]
    alone, grafted = arms
    lines = [
        table(("arm", "step (median)", "range", "peak memory"), rows),
        f"\ngrafted / host alone {grafted['step_seconds'] / alone['step_seconds']:.3f}",
        f"losses {'agree' if check['agrees'] else 'DO NOT AGREE'} with float32 on the CPU",
    ]
    lines += [
        f"  {name}: difference {value:.1e}, allowed {TOLERANCE[name]:.0e}"
        for name, value in check["differences"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--layers", type=int, default=12, help="number of layers of the host")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--check-steps", type=int, default=5, help="number of steps to compare losses for")
    parser.add_argument("--check-batch", type=int, default=4, help="batch size of that comparison")
    parser.add_argument("--output", type=Path, help="write all measurements to this JSON file")
    arguments = parser.parse_args()
    facts = machine() | {"device": arguments.device}
    if arguments.device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "gpu_bytes": torch.cuda.get_device_properties(0).total_memory}
    setting = Setting(
        device=arguments.device,
        precision=arguments.precision,
        layers=arguments.layers,
        batch=arguments.batch,
        length=arguments.length,
        steps=arguments.steps,
    )
    packages = versions(*PACKAGES)
    print(heading(facts, packages) + f"; {facts.get('gpu', arguments.device)}")
    print(
        f"{setting.precision}, {setting.layers} layers of BERT-base, batch {setting.batch}, {setting.length} tokens, "
        f"{setting.steps} steps\n"
    )
    arms = []
    for arm in (HOST_ALONE, GRAFTED):
        arms.append(call_in_new_process(measure_arm, setting, arm))
        say(f"{arm}: {arms[-1]['step_seconds']:.4f} s")
    small = replace(setting, batch=arguments.check_batch)
    check = call_in_new_process(check_losses, small, arguments.check_steps)
    print(show(arms, check))
    document = {"machine": facts, "versions": packages, "setting": asdict(setting), "arms": arms, "check": check}
    save(arguments.output, document)
    if not check["agrees"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
