"""Watch a model under training, step by step, without changing the training.

Hooks catch the vectors. Gradients are read after the backward pass and before they are clipped, weights before and
after the optimizer's step. After every step a few fixed texts are read in float32 without dropout, which draws no
random number: they show how far the step has moved the model as a function.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.graft.matching import matching_batch

# The modules of a control, by the part of a graft that they replace.
_PART_OF = {"residual_gate": "gate", "block.0": "proj_in", "block.2": "proj_out"}
# Beyond it, the slope of a GELU is 1 or 0 to four digits.
_SATURATED = 3.0
_PROBE = 16
# Vectors without an RMS of their own: nearly always the same as another one, or described in another way.
_WITHOUT_RMS = ("head", "gelu", "proj_out_input")


class Taps:
    """Catches what flows between a model's parts, as float32 [texts, width], while it listens.

    Names: `host` the host's vectors, `inside` proj_in's output, `donor` the donor's, `proj_out_input` what proj_out
    reads, `out` its output, `head` what the head reads, `gelu` what its GELU reads, `logits`.
    """

    def __init__(self, model: Any) -> None:
        self.seen: dict[str, Tensor] = {}
        self._listening = False
        block = getattr(model, "block", None) or (model.proj_in, model.donor, model.proj_out)
        if block[0] is not None:
            self._input("host", block[0])
            for name, module in zip(("inside", "donor", "out"), block, strict=True):
                self._output(name, module)
            self._input("proj_out_input", block[2])
        self._input("head", model.head)
        self._input("gelu", model.head.activation)
        self._output("logits", model.head.out)

    @contextmanager
    def listening(self) -> Iterator[dict[str, Tensor]]:
        """Listen; afterwards the dictionary holds what was caught."""
        self.seen, self._listening = {}, True
        try:
            yield self.seen
        finally:
            self._listening = False
        # Without a graft, the head reads the host's vectors.
        self.seen.setdefault("host", self.seen["head"])

    def _input(self, name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda _, args: self._keep(name, args[0]))

    def _output(self, name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _, args, output: self._keep(name, output))

    def _keep(self, name: str, value: Tensor) -> None:
        if self._listening:
            self.seen[name] = value.detach().float().flatten(0, -2).clone()


def rms(values: Tensor) -> float:
    """The root of the mean square of all numbers."""
    return float(values.double().square().mean().sqrt())


def cosine(vectors: Tensor) -> float:
    """The mean cosine of all pairs of different rows of [texts, width]."""
    unit = nn.functional.normalize(vectors.double(), dim=-1)
    number = len(unit)
    return float((unit.sum(dim=0).square().sum() - number) / (number * (number - 1)))


def effective_rank(vectors: Tensor) -> float:
    """In how many directions the rows of [texts, width] differ: (sum of eigenvalues)^2 / sum of their squares.

    Of the covariance; between 1 and texts - 1.
    """
    apart = vectors.double() - vectors.double().mean(dim=0)
    gram = apart @ apart.T
    return float(gram.trace().square() / gram.square().sum())


def describe(seen: Mapping[str, Tensor], *, donor: bool) -> dict[str, float]:
    """The numbers of one batch; `donor`: the projections have a donor between them, and not a control."""
    numbers = {f"rms_{name}": rms(value) for name, value in seen.items() if name not in _WITHOUT_RMS}
    directions = {name: seen[name] for name in ("host", "out") if name in seen}
    if donor:
        directions["added"] = seen["donor"] - seen["inside"]
        numbers["rms_added"] = rms(directions["added"])
    for name, vectors in directions.items():
        numbers[f"cosine_{name}"] = cosine(vectors)
        numbers[f"rank_{name}"] = effective_rank(vectors)
    numbers["saturated"] = float((seen["gelu"].abs() > _SATURATED).double().mean())
    if seen["logits"].shape[-1] == 2:
        margin = seen["logits"].diff(dim=-1)
        numbers |= {"margin_mean": float(margin.mean()), "margin_deviation": float(margin.std())}
    return numbers


def trained_parts(model: Any) -> dict[str, list[nn.Parameter]]:
    """The trained parameters by part."""
    parameters: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first = name.split(".", 1)[0]
            first = ".".join(name.split(".")[:2]) if first == "block" else first
            parameters[_PART_OF.get(first, first)].append(parameter)
    return dict(parameters)


def norm(tensors: list[Tensor]) -> float:
    """The norm of several tensors as one vector."""
    return float(nn.utils.get_total_norm(tensors))


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """The numbers of one training, by step.

    Attributes:
        series: Name -> one number per step.
    """

    def __init__(self) -> None:
        self.series: dict[str, list[float | None]] = defaultdict(list)
        self._before: dict[str, list[Tensor]] = {}

    def attach(self, trainer: Any) -> None:
        """Get ready to watch a trainer's model."""
        self.model, self._clip = trainer.model, trainer.args.max_grad_norm
        self.taps, self._parts = Taps(self.model), trained_parts(self.model)
        self._has_donor = self.model.donor is not None
        texts = [trainer.eval_dataset[index] for index in range(min(_PROBE, len(trainer.eval_dataset)))]
        batch = dict(trainer.data_collator(texts))
        self._probe = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}

    def read_backward(self, loss: Tensor) -> None:
        """After a forward and backward pass: its vectors, and the gradients before they are clipped."""
        self._add({"loss": float(loss)} | describe(self.taps.seen, donor=self._has_donor))
        norms = {
            part: norm([parameter.grad for parameter in parameters if parameter.grad is not None])
            for part, parameters in self._parts.items()
        }
        whole = sum(value**2 for value in norms.values()) ** 0.5
        self._add({f"gradient_{part}": value for part, value in norms.items()})
        self._add({"gradient": whole, "clip": min(1.0, self._clip / (whole + 1e-6))})

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the fixed texts for the first time."""
        self._last = self._read_probe()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the weights."""
        self._before = {
            part: [value.detach().clone() for value in parameters] for part, parameters in self._parts.items()
        }

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure how far the step moved the weights, and the model."""
        for part, before in self._before.items():
            moved = norm([now.detach() - old for now, old in zip(self._parts[part], before, strict=True)])
            size = norm(before)
            self._add({f"update_{part}": moved / size if size else None})
        self._add({"gate": float(self.model.gate.detach())} if self.model.gate is not None else {})
        last, now = self._last, self._read_probe()
        self._add({f"step_{name}": rms(now[name] - last[name]) for name in ("host", "out", "logits") if name in now})
        if "proj_out" in self._before:
            new, old = self._parts["proj_out"][0].detach(), self._before["proj_out"][0]
            self._add({"step_out_by_proj_out": rms(last["proj_out_input"] @ (new - old).T) * scale_of(self.model)})
        with torch.no_grad(), self._still():
            self._add({"step_logits_by_head": rms(self.model.head(last["head"]) - last["logits"])})
        self._last = now

    def rounded(self) -> dict[str, list[float | None]]:
        """The series, to four significant digits; parts that a model lacks are left out."""
        return {name: [rounded(value) for value in values] for name, values in self.series.items()}

    def _add(self, numbers: Mapping[str, float | None]) -> None:
        for name, value in numbers.items():
            self.series[name].append(value)

    def _read_probe(self) -> dict[str, Tensor]:
        with torch.no_grad(), self._still(), self.taps.listening() as seen:
            # The class's method: the trainer has wrapped the model's own in mixed precision.
            type(self.model).forward(self.model, **self._probe)
        return seen

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Without dropout."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)


def rounded(value: float | None) -> float | None:
    """To four significant digits."""
    return None if value is None else float(f"{value:.4g}")


@torch.no_grad()
def quieten(model: Any) -> Any:
    """Scale the input of proj_out by a fixed number, so that the graft's output is as large as the host's vectors.

    Its weights stay as they are, and so does what an optimizer's step does to them.
    """
    with (taps := Taps(model)).listening():
        model(**matching_batch(model))
    factor = rms(taps.seen["host"]) / rms(taps.seen["out"])
    model.proj_out.register_forward_pre_hook(lambda _, args: (args[0] * factor,))
    return model


@torch.no_grad()
def fold(model: Any) -> Any:
    """Multiply the scale of matched projections into their weights: the same function, moved more by an optimizer."""
    for projection in (model.proj_in, model.proj_out):
        projection.weight.mul_(projection.scale)
        projection.scale.fill_(1)
    return model


def scale_of(model: Any) -> float:
    """The scale of proj_out, 1 where it has none."""
    return float(getattr(model.proj_out, "scale", 1.0))


def watched_trainer(watch: Watch) -> type[SurgeonTrainer]:
    """The trainer of `surgeon finetune`, watched."""

    class Watched(SurgeonTrainer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            watch.attach(self)
            self.add_callback(watch)

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            with watch.taps.listening():
                loss: Tensor = super().training_step(*args, **kwargs)
            watch.read_backward(loss)
            return loss

    return Watched


def as_text(document: Mapping[str, Any]) -> str:
    """JSON with each list of numbers on one line."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s*([-+.,\de\snul]*?)\s*\]", lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"
