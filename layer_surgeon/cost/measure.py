"""Measure time and peak memory of a model with given shapes, in a new process.

The weights are random, because neither time nor memory depends on them; so no weights need to be on disk. Each model is
measured in a new process, because the peak memory of a process never decreases.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from layer_surgeon._devices import choose_device
from layer_surgeon._python import start_python
from layer_surgeon.cost.flops import training_loss
from layer_surgeon.errors import ConfigError, GraftError
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.graft.modeling import GraftedModel
from layer_surgeon.tasks import get_task

_WARM_UP = 1
_DTYPES = ("float32", "bfloat16", "float16")
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Time and memory of one model.

    Attributes:
        device: The device, such as `cpu, 2 threads` or the name of a GPU.
        repeats: Number of timed runs, after one warm-up run.
        forward_seconds: Median time of a forward pass in eval mode, without gradients.
        forward_peak_bytes: Peak memory of the forward passes, with weights. On the CPU, the process's resident memory
            minus that of the interpreter with torch and transformers; on a GPU, the memory that torch allocated.
        training_seconds: Median time of a training step: forward, backward and AdamW update.
        training_peak_bytes: Peak memory of the training steps, with gradients and AdamW's state.
    """

    device: str
    repeats: int
    forward_seconds: float
    forward_peak_bytes: int
    training_seconds: float
    training_peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The computation to profile.

    Attributes:
        batch: Number of texts in a batch.
        length: Number of tokens in each text.
        dtype: Number format of host, projections and head: float32, bfloat16 or float16.
        device: Device for measurements, such as `cpu` or `cuda`; None: the GPU if there is one.
        repeats: Number of timed runs.

    Raises:
        ConfigError: A value is invalid, or this machine has no such device.
    """

    batch: int = 32
    length: int = 100
    dtype: str = "float32"
    device: str | None = None
    repeats: int = 3

    def __post_init__(self) -> None:
        for name in ("batch", "length", "repeats"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; it must be one of {', '.join(_DTYPES)}.")
        if self.device is not None:
            choose_device(self.device)


def example_inputs(
    model: GraftedModel, workload: Workload, device: torch.device | None = None, *, labels: bool
) -> dict[str, Any]:
    """Create a batch of texts without padding, and with `labels` also the training targets of the model's task."""
    shape = (workload.batch, workload.length)
    ids = torch.ones(shape, dtype=torch.long, device=device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.settings.donor_tokens == "own":
        inputs |= {"donor_input_ids": ids, "donor_attention_mask": torch.ones_like(ids)}
    task = get_task(model.config.task)
    # A decoder reads the targets too.
    if labels or task.is_encoder_decoder:
        for name, per_token in task.targets.items():
            # With one label, transformers learns a number per text.
            is_number = task.labels and not per_token and model.config.num_labels == 1
            target = torch.zeros_like(ids if per_token else ids[:, 0])
            inputs[name] = target.float() if is_number else target
    return inputs


def measure(config: SurgeonGraftConfig, workload: Workload) -> Measurement:
    """Create a model with a config's shapes in a new process, and measure it.

    Raises:
        GraftError: The process failed, usually because it ran out of memory.
    """
    request = json.dumps({"config": json.loads(config.to_json_string(use_diff=False)), "workload": asdict(workload)})
    pipe = subprocess.PIPE
    process = start_python(__name__, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    stdout, stderr = process.communicate(request)
    if process.returncode != 0 or not stdout.strip():
        reason = (stderr.strip().splitlines() or ["no output"])[-1]
        raise GraftError(
            f"The measurement failed (exit code {process.returncode}): {reason}. If memory ran out, choose a smaller "
            "batch or length."
        )
    return Measurement(**json.loads(stdout.strip().splitlines()[-1]))


def main() -> None:
    """Run as the child process: read a config and a workload from stdin, and print a measurement."""
    request = json.loads(sys.stdin.read())
    config = SurgeonGraftConfig.from_dict(request["config"])
    print(json.dumps(asdict(measure_here(config, Workload(**request["workload"])))))


def measure_here(config: SurgeonGraftConfig, workload: Workload) -> Measurement:
    """Measure in this process."""
    device = choose_device(workload.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    peak = peak_of(device)
    model = new_model(config, workload, device)
    inputs = example_inputs(model, workload, device, labels=False)

    def forward() -> None:
        with torch.no_grad():
            model(**inputs)

    forward_seconds = _median_seconds(forward, workload.repeats, device)
    forward_peak = peak()
    step = training_step(model, example_inputs(model, workload, device, labels=True))
    training_seconds = _median_seconds(step, workload.repeats, device)
    return Measurement(
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}",
        repeats=workload.repeats,
        forward_seconds=forward_seconds,
        forward_peak_bytes=forward_peak,
        training_seconds=training_seconds,
        training_peak_bytes=peak(),
    )


def new_model(config: SurgeonGraftConfig, workload: Workload, device: torch.device) -> GraftedModel:
    """Create a model with a config's shapes and random weights, in eval mode."""
    model: GraftedModel = GraftedModel._from_config(config)
    donor, model.donor = model.donor, None
    # The donor layer keeps its own number format.
    model.to(device=device, dtype=getattr(torch, workload.dtype))
    model.donor = None if donor is None else donor.to(device)
    return model.eval()  # type: ignore[no-any-return]  # transformers is untyped here


def training_step(model: GraftedModel, inputs: Mapping[str, Any]) -> Callable[[], None]:
    """Return a function that runs one training step with AdamW."""
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(training_loss(model(**inputs)))
        optimizer.step()

    return step


def _median_seconds(function: Callable[[], None], repeats: int, device: torch.device) -> float:
    seconds = []
    for _ in range(_WARM_UP + repeats):
        start = time.perf_counter()
        function()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_UP:])


def peak_of(device: torch.device) -> Callable[[], int]:
    """Return a function that returns the peak memory since this call, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        initial = status_bytes("VmRSS")
        return lambda: status_bytes("VmHWM") - initial
    # macOS doesn't have that file; its ru_maxrss is in bytes.
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start


def status_bytes(name: str) -> int:
    """Read a size from /proc/self/status, in bytes. Not from `ru_maxrss`, which starts at the parent's peak."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
