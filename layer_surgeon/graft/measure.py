"""Time and peak memory of a model of given shapes, measured in a process of its own.

The weights are random numbers: neither time nor memory depends on them, so that nothing has to be on disk. A process
of its own, because the peak of a process's memory only ever grows.
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

from layer_surgeon._python import start_python
from layer_surgeon.errors import ConfigError, GraftError
from layer_surgeon.graft.configuration import SurgeonGraftConfig
from layer_surgeon.graft.flops import training_loss
from layer_surgeon.graft.modeling import GraftedModel

_WARM_UP = 1
_DTYPES = ("float32", "bfloat16", "float16")
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one model took.

    Attributes:
        device: Where it ran, such as `cpu, 2 threads` or the name of a GPU.
        repeats: How often each was timed, after one run to warm up.
        forward_seconds: Median of a forward pass in eval mode, without gradients.
        forward_peak_bytes: Peak memory up to then, weights included: on the CPU the process's resident memory beyond
            that of the interpreter with torch and transformers; on a GPU what torch had allocated.
        training_seconds: Median of a training step: forward, backward and AdamW's update.
        training_peak_bytes: Peak memory of training steps, gradients and AdamW's state included.
    """

    device: str
    repeats: int
    forward_seconds: float
    forward_peak_bytes: int
    training_seconds: float
    training_peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is computed.

    Attributes:
        batch: Texts at once.
        length: Tokens of each text.
        dtype: Number format of host, projections and head: float32, bfloat16 or float16.
        device: Where it is measured, such as `cpu` or `cuda`; None: the GPU if there is one.
        repeats: How often each is timed.

    Raises:
        ConfigError: A value can't be used.
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


def example_inputs(
    model: GraftedModel, workload: Workload, device: torch.device | None = None, *, labels: bool
) -> dict[str, Any]:
    """A batch of texts without padding, and with `labels` what the model's task is trained on."""
    shape = (workload.batch, workload.length)
    ids = torch.ones(shape, dtype=torch.long, device=device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    task = str(model.config.task)
    if task == "seq2seq":
        inputs["labels"] = ids
    elif labels and task == "question-answering":
        inputs |= dict.fromkeys(("start_positions", "end_positions"), ids[:, 0])
    elif labels and task in ("token-classification", "causal-lm"):
        inputs["labels"] = torch.zeros_like(ids)
    elif labels and task == "text-classification":
        kind = torch.float32 if model.config.num_labels == 1 else torch.long
        inputs["labels"] = torch.zeros(workload.batch, dtype=kind, device=device)
    return inputs


def measure(config: SurgeonGraftConfig, workload: Workload) -> Measurement:
    """Make a model of a config's shapes in a new process and measure it.

    Raises:
        GraftError: The process failed, most often for want of memory.
    """
    request = json.dumps({"config": json.loads(config.to_json_string(use_diff=False)), "workload": asdict(workload)})
    pipe = subprocess.PIPE
    process = start_python(__name__, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    printed, complaints = process.communicate(request)
    if process.returncode != 0 or not printed.strip():
        reason = (complaints.strip().splitlines() or ["nothing was printed"])[-1]
        raise GraftError(
            f"Measuring failed (exit code {process.returncode}): {reason}. Take a smaller batch or length, or "
            "leave the measuring out."
        )
    return Measurement(**json.loads(printed.strip().splitlines()[-1]))


def main() -> None:
    """The process: reads a config and a workload from stdin, prints a measurement."""
    request = json.loads(sys.stdin.read())
    config = SurgeonGraftConfig.from_dict(request["config"])
    print(json.dumps(asdict(measure_here(config, Workload(**request["workload"])))))


def measure_here(config: SurgeonGraftConfig, workload: Workload) -> Measurement:
    """Measure in this process."""
    name = workload.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
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
        else f"{name}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}",
        repeats=workload.repeats,
        forward_seconds=forward_seconds,
        forward_peak_bytes=forward_peak,
        training_seconds=training_seconds,
        training_peak_bytes=peak(),
    )


def new_model(config: SurgeonGraftConfig, workload: Workload, device: torch.device) -> GraftedModel:
    """A model of a config's shapes with random weights, in eval mode."""
    model: GraftedModel = GraftedModel._from_config(config)
    donor, model.donor = model.donor, None
    # The donor layer has a number format of its own.
    model.to(device=device, dtype=getattr(torch, workload.dtype))
    model.donor = None if donor is None else donor.to(device)
    return model.eval()  # type: ignore[no-any-return]  # transformers is untyped here


def training_step(model: GraftedModel, inputs: Mapping[str, Any]) -> Callable[[], None]:
    """A function that takes one step of training with AdamW."""
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
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_UP:])


def peak_of(device: torch.device) -> Callable[[], int]:
    """A function that gives the peak of memory from now on, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        before = status_bytes("VmRSS")
        return lambda: status_bytes("VmHWM") - before
    # macOS, which has no such file, counts in bytes here.
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start


def status_bytes(name: str) -> int:
    """A size from Linux's own account of this process. Not `ru_maxrss`: that one begins with the parent's peak."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
