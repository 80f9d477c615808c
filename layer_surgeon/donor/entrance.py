"""The entrance: everything that acts before a donor's first layer, by the family's own code.

That is the table of tokens and, depending on the family, tables of positions and token types, a norm, a projection or a
scale. The family's own forward runs without its layers, so no code here is specific to a family. A trial run without
weights shows which modules act before the first layer; only these get weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from layer_surgeon.donor.family import model_class
from layer_surgeon.donor.probe import FAILURES, takes_position_ids
from layer_surgeon.donor.scaffold import Run, run_surroundings, surroundings_class
from layer_surgeon.donor.tensors import load_state
from layer_surgeon.errors import UnsupportedArchitectureError

# The trial run. A batch of 2 could be unpacked like a tuple of two outputs.
_BATCH, _LENGTH = 5, 7


@dataclass(frozen=True, kw_only=True)
class EntrancePlan:
    """Which weights act before the first layer.

    Attributes:
        config: The donor's config, of the family's own class.
        modules: Paths of the modules in the family's model without a head.
        shapes: Shapes of their weights by name, such as `embed_tokens.weight`.
        token_table: The weight with one row per token, [vocab, width]; None if the family has no single one.
        extras: See `Run.extras`.
        outline: The family's model without layers and without weights.
    """

    config: PretrainedConfig
    modules: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    token_table: str | None
    extras: int | None
    outline: PreTrainedModel


def plan_entrance(config: PretrainedConfig) -> EntrancePlan:
    """Find out which modules act before the first layer. Needs no weights.

    Args:
        config: The donor's config, of the family's own class.

    Raises:
        UnsupportedArchitectureError: The family's model can't be run without its layers.
    """
    base = model_class(config)
    with torch.device("meta"):
        model = surroundings_class(base, (), before=True)(config)
    with torch.device("cpu"):  # also while a model that the stack is part of is being made without weights
        model.to_empty(device="cpu")
        model.initialize_weights()
        model.eval()
        input_ids = torch.arange(_BATCH * _LENGTH).reshape(_BATCH, _LENGTH) % int(config.vocab_size)
        run, extras = try_extras(base, lambda extras: _run(model, config, torch.float32, extras, input_ids=input_ids))
    modules = tuple(dict.fromkeys(run.left_out_calls[: run.num_calls_before]))
    shapes = {
        f"{path}.{name}": tuple(tensor.shape)
        for path in modules
        for name, tensor in model.get_submodule(path).replaced.state_dict().items()
    }
    table = _token_table(model)
    path = next((path for path in modules if model.get_submodule(path).replaced is table), None)
    return EntrancePlan(
        config=config,
        modules=modules,
        shapes=shapes,
        token_table=None if path is None else f"{path}.weight",
        extras=extras,
        outline=model,
    )


class DonorEntrance(nn.Module):
    """Computes what enters a donor's first layer, exactly as inside its model.

    Attributes:
        model: The family's model without layers, and with only the weights of `plan.modules`.
    """

    def __init__(self, plan: EntrancePlan, model: PreTrainedModel, token_ids: Tensor | None) -> None:
        super().__init__()
        self.plan = plan
        self.model = model.eval().requires_grad_(False)
        self.token_ids: Tensor | None
        self.register_buffer("token_ids", token_ids, persistent=False)
        if token_ids is not None:
            _token_table(model).register_forward_pre_hook(self._to_rows)

    @classmethod
    def from_tensors(
        cls, plan: EntrancePlan, tensors: Mapping[str, Tensor], *, token_ids: Tensor | None = None, **settings: Any
    ) -> "DonorEntrance":
        """Make an entrance from its weights.

        Args:
            plan: From `plan_entrance`.
            tensors: The weights that the plan names. The table of tokens may have any number of rows.
            token_ids: The tokens that the rows of the table stand for, sorted; no other tokens can then be used. None:
                row i is token i.
            settings: Arguments for the family's `from_pretrained`, such as dtype.

        Raises:
            ArtifactError: The weights are not those that the plan names.
            UnsupportedArchitectureError: The result also depends on other weights.
        """
        table = tensors.get(plan.token_table) if plan.token_table is not None else None
        family = _entrance_class(plan, None if table is None else len(table))
        model = load_state(family, plan.config, tensors, "the embeddings", "the modules before layer 0", **settings)
        entrance = cls(plan, model, token_ids)
        entrance._check_complete()
        return entrance

    @classmethod
    def random(cls, plan: EntrancePlan, num_rows: int | None = None) -> "DonorEntrance":
        """Make an entrance with random weights; under `torch.device("meta")`, without any weights.

        Args:
            plan: From `plan_entrance`.
            num_rows: Number of rows of the table of tokens. None: as in the donor.
        """
        device = torch.empty(0).device
        with torch.device("meta"):
            model = _entrance_class(plan, num_rows)(plan.config)
        if device.type != "meta":
            model.to_empty(device=device)
            model.initialize_weights()
        return cls(plan, model, None)

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weights."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Compute what enters the first layer.

        Args:
            input_ids: [batch, seq].
            attention_mask: [batch, seq], 1 for tokens and 0 for padding.
            position_ids: [batch, seq]. None: as the family's own forward counts them.

        Returns:
            [batch, seq, donor_hidden]. Values at padding are undefined.

        Raises:
            UnsupportedArchitectureError: The family doesn't accept position_ids.
        """
        arguments = {"input_ids": input_ids}
        if attention_mask is not None:
            arguments["attention_mask"] = attention_mask
        if position_ids is not None:
            if not takes_position_ids(self.model):
                raise UnsupportedArchitectureError(
                    f"{type(self.model).__name__} doesn't accept position_ids, so positions are always 0, 1, 2, ... "
                    "Leave position_ids out."
                )
            arguments["position_ids"] = position_ids
        arrived: Tensor = _run(self.model, self.plan.config, self.dtype, self.plan.extras, **arguments).arrived
        return arrived

    def is_local(self) -> bool:
        """Whether what enters the first layer depends on nothing but each token and its position; runs a short text."""
        table = _token_table(self.model)
        device = next(self.model.parameters()).device
        ids = (torch.arange(_BATCH * _LENGTH, device=device) % table.num_embeddings).reshape(_BATCH, _LENGTH)
        positions = None
        if takes_position_ids(self.model):
            positions = torch.arange(_LENGTH, device=device).expand_as(ids)
        with torch.no_grad():
            whole = self(ids, torch.ones_like(ids), positions)
            pieces = [
                self(part, torch.ones_like(part), None if positions is None else positions[:, column : column + 1])
                for column, part in enumerate(ids.split(1, dim=1))
            ]
        tolerance = 1e-5 if whole.dtype == torch.float32 else 2 * torch.finfo(whole.dtype).eps
        return bool((torch.cat(pieces, dim=1) - whole).norm() <= tolerance * whole.norm())

    def tensors(self) -> dict[str, Tensor]:
        """The weights, by the names that the plan has."""
        state = self.model.state_dict()
        return {name: state[name].detach().contiguous().cpu() for name in self.plan.shapes}

    def _to_rows(self, table: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self.token_ids is not None
        rows = torch.searchsorted(self.token_ids, args[0].contiguous())
        return (rows.clamp_(max=len(self.token_ids) - 1), *args[1:])

    def _check_complete(self) -> None:
        first = 0 if self.token_ids is None else int(self.token_ids[0])
        device = next(self.model.parameters()).device
        states = self(torch.full((1, _LENGTH), first, device=device))
        if states.isnan().any():
            raise UnsupportedArchitectureError(
                f"What enters the first layer of {type(self.model).__name__} depends on more than "
                f"{', '.join(self.plan.modules)}, or these weights have NaN. Take a model of another family."
            )


def _entrance_class(plan: EntrancePlan, num_rows: int | None) -> type[PreTrainedModel]:
    """The class of the family's model with only the weights before layer 0, and `num_rows` rows in the token table."""

    def shape_table(model: PreTrainedModel) -> None:
        if plan.token_table is not None and num_rows is not None:
            table = _token_table(model)
            table.weight = nn.Parameter(torch.empty(num_rows, *plan.shapes[plan.token_table][1:], device="meta"))
            table.num_embeddings = num_rows
            # Only gradients depend on it, and it may be outside of a smaller table.
            table.padding_idx = None

    return surroundings_class(model_class(plan.config), plan.modules, before=True, prepare=shape_table)


def try_extras(base: type[PreTrainedModel], attempt: Any) -> tuple[Run, int | None]:
    """Find out how the layers of a family return their hidden states, by trying which way its forward succeeds.

    Args:
        base: The family's class, for the message.
        attempt: Runs the forward with the given `extras`.

    Returns:
        The run that succeeded, and its `extras`; see `Run.extras`.

    Raises:
        UnsupportedArchitectureError: No way succeeds.
    """
    first_error: Exception | None = None
    for extras in (None, 0, 1, 2, 3):
        try:
            with torch.no_grad():
                return attempt(extras), extras
        except FAILURES as error:
            first_error = first_error or error
    raise UnsupportedArchitectureError(
        f"{base.__name__} can't be run without its layers ({type(first_error).__name__}: {first_error}). "
        "Take a model of another family."
    ) from first_error


def _run(
    model: PreTrainedModel, config: PretrainedConfig, dtype: torch.dtype, extras: int | None, **arguments: Tensor
) -> Run:
    input_ids = arguments["input_ids"]
    # Only its shape, dtype and device matter, so it takes no memory.
    states = torch.empty((), dtype=dtype, device=input_ids.device).expand(*input_ids.shape, int(config.hidden_size))
    run = Run(layer=never_called, hidden_states=states, extras=extras)
    run_surroundings(model, run, **arguments)
    if not isinstance(run.arrived, Tensor) or run.arrived.shape != states.shape:
        found = list(run.arrived.shape) if isinstance(run.arrived, Tensor) else type(run.arrived).__name__
        raise ValueError(f"what enters layer 0 is {found} instead of hidden states of shape {list(states.shape)}")
    return run


def never_called(*_: Any, **__: Any) -> Any:
    """Stand in for the layers of a model that has none.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError("This model has no layers.")


def _token_table(model: PreTrainedModel) -> Any:
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return getattr(table, "replaced", table)
