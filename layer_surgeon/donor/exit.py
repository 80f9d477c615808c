"""The exit: everything that acts after a donor's last layer, by the family's own code, in slices of the vocabulary.

That is a final norm and a language head and, depending on the family, a projection, a bias, a scale or a limit of the
logits. As for the entrance, the family's own forward runs without its layers. The head holds a slice of its rows at a
time, which gives the logits of these tokens: what comes after the head acts on each logit by itself. `check_slices`
finds out whether it does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from layer_surgeon.donor.entrance import never_called, try_extras
from layer_surgeon.donor.scaffold import Run, run_surroundings, surroundings_class
from layer_surgeon.donor.tensors import load_state
from layer_surgeon.errors import CheckpointError, UnsupportedArchitectureError

_BATCH = 5
# Equal numbers from products of different sizes may differ in the last bits.
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class ExitPlan:
    """Which weights act after the last layer.

    Attributes:
        config: The donor's config, of the family's own class.
        modules: Paths of the modules in the family's causal language model.
        shapes: Shapes of their weights by name, such as `model.norm.weight`.
        sliced: The names of those with one row per token.
        vocab_size: The number of rows of the head.
        extras: See `Run.extras`.
        outline: The family's model without layers and without weights.
    """

    config: PretrainedConfig
    modules: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    sliced: tuple[str, ...]
    vocab_size: int
    extras: int | None
    outline: PreTrainedModel


def plan_exit(config: PretrainedConfig) -> ExitPlan:
    """Find out which modules act after the last layer. Needs no weights.

    Args:
        config: The donor's config, of the family's own class.

    Raises:
        UnsupportedArchitectureError: The family has no causal language model, or it can't be run without its layers.
    """
    base = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if base is None:
        raise UnsupportedArchitectureError(
            f"transformers has no causal language model for {type(config).__name__}, so its texts have no "
            "log-likelihoods. Run it without --score."
        )
    with torch.device("meta"):
        model = surroundings_class(base, (), before=False)(config)
    model.to_empty(device="cpu")
    model.initialize_weights()
    model.eval()
    states = torch.zeros(_BATCH, 1, int(config.hidden_size))

    def attempt(extras: int | None) -> Run:
        run, output = _run(model, states, extras)
        if output.logits.shape[:2] != (_BATCH, 1):
            raise ValueError(f"its logits have the shape {list(output.logits.shape)} for {_BATCH} texts of one token")
        return run

    run, extras = try_extras(base, attempt)
    modules = tuple(dict.fromkeys(run.left_out_calls[run.num_calls_before :]))
    shapes = {
        f"{path}.{name}": tuple(tensor.shape)
        for path in modules
        for name, tensor in model.get_submodule(path).replaced.state_dict().items()
    }
    head = f"{model.surgeon_head_path}.weight"
    if model.surgeon_head_path is None or len(shapes.get(head, ())) != 2:
        raise _no_head(base)
    vocab_size, width = shapes[head]
    sliced = tuple(
        name
        for name, shape in shapes.items()
        if name.startswith(f"{model.surgeon_head_path}.") or (shape == (vocab_size,) and vocab_size != width)
    )
    return ExitPlan(
        config=config,
        modules=modules,
        shapes=shapes,
        sliced=sliced,
        vocab_size=vocab_size,
        extras=extras,
        outline=model,
    )


class DonorExit(nn.Module):
    """Computes logits from the states after a donor's last layer, for a slice of the vocabulary.

    Attributes:
        model: The family's causal language model without layers, and with only the weights of `plan.modules`.
    """

    def __init__(self, plan: ExitPlan, model: PreTrainedModel) -> None:
        super().__init__()
        self.plan = plan
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def from_tensors(cls, plan: ExitPlan, tensors: Mapping[str, Tensor], **settings: Any) -> "DonorExit":
        """Make an exit from its weights. Those in `plan.sliced` have the rows of the first slice.

        Args:
            plan: From `plan_exit`.
            tensors: The weights that the plan names.
            settings: Arguments for the family's `from_pretrained`, such as dtype.

        Raises:
            ArtifactError: The weights are not those that the plan names.
        """

        def shape_head(model: PreTrainedModel) -> None:
            for name in plan.sliced:
                _set_weight(model, name, torch.empty(tensors[name].shape, device="meta"))

        base = MODEL_FOR_CAUSAL_LM_MAPPING[type(plan.config)]
        family = surroundings_class(base, plan.modules, before=False, prepare=shape_head)
        return cls(
            plan, load_state(family, plan.config, tensors, "the head", "the modules after the layers", **settings)
        )

    def set_slice(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the rows of the head.

        Args:
            tensors: The weights in `plan.sliced`, with the rows of the slice.
        """
        for name in self.plan.sliced:
            old = self.model.get_parameter(name)
            _set_weight(self.model, name, tensors[name].to(device=old.device, dtype=old.dtype))

    def forward(self, states: Tensor) -> Tensor:
        """Compute logits.

        Args:
            states: After the last layer, [tokens, donor_hidden].

        Returns:
            [tokens, rows of the slice], in float32.

        Raises:
            UnsupportedArchitectureError: The family's logits are not those of the head's rows.
        """
        rows = len(self.model.get_parameter(self.plan.sliced[0]))
        _, output = _run(self.model, states[:, None], self.plan.extras)
        logits: Tensor = output.logits[:, 0].float()
        if logits.shape[-1] != rows:
            raise _no_head(type(self.model))
        return logits

    def check_slices(self, tensors: Mapping[str, Tensor], states: Tensor) -> None:
        """Check that the logits of a slice are those of its halves, and leave the whole slice in the head.

        Args:
            tensors: The weights in `plan.sliced`, with the rows of the slice.
            states: Some states, [tokens, donor_hidden].

        Raises:
            UnsupportedArchitectureError: A logit depends on other tokens' rows.
            CheckpointError: A logit is infinite or NaN.
        """
        half = max(1, len(tensors[self.plan.sliced[0]]) // 2)
        parts = []
        for part in (slice(None, half), slice(half, None)):
            rows = {name: tensors[name][part] for name in self.plan.sliced}
            if len(rows[self.plan.sliced[0]]):
                self.set_slice(rows)
                parts.append(self(states))
        self.set_slice(tensors)
        whole = self(states)
        if (whole.isnan() | whole.isposinf()).any():
            raise not_finite("The logits", whole.dtype)
        difference = (torch.cat(parts, dim=-1) - whole).abs().max()
        # In half precision, the last bits are larger.
        tolerance = max(_TOLERANCE, 4 * torch.finfo(states.dtype).eps) * whole.abs().max().clamp(min=1.0)
        if not difference <= tolerance:
            raise _no_head(type(self.model))


def not_finite(what: str, dtype: torch.dtype) -> CheckpointError:
    """Return the error for numbers that are infinite or NaN; `what` begins a sentence."""
    advice = "The weights may be damaged."
    if dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        advice = (
            f"The numbers may be too large for {name}: choose another dtype, such as float32. If this has them too, "
            "the weights are damaged."
        )
    return CheckpointError(
        f"{what} of some tokens are infinite or NaN, so everything after them would be wrong. {advice}"
    )


def _run(model: PreTrainedModel, states: Tensor, extras: int | None) -> tuple[Run, Any]:
    run = Run(layer=never_called, hidden_states=states, extras=extras)
    embeddings = states.new_full((*states.shape[:-1], model.surgeon_embedding_width), torch.nan)
    return run, run_surroundings(model, run, inputs_embeds=embeddings)


def _set_weight(model: PreTrainedModel, name: str, value: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, nn.Parameter(value, requires_grad=False))


def _no_head(family: type[PreTrainedModel]) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"{family.__name__} doesn't compute its logits as a product with one matrix whose rows stand for tokens, so "
        "log-likelihoods can't be computed in slices of the vocabulary. Run it without --score."
    )
