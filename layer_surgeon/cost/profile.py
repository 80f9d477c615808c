"""Profile a graft and its host alone: parameters, multiply-accumulates, memory and time.

Everything except peak memory and time is computed from shapes: models are created on the meta device, from their
config.json alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layer_surgeon.cost.flops import Macs, count_macs, count_training_macs, shapes_only
from layer_surgeon.cost.measure import Measurement, Workload, example_inputs, measure
from layer_surgeon.cost.shapes import DonorShape, Target, graft_config, shape_of, without_donor
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.donor_loading import describe
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.graft.modeling import GraftedModel


@dataclass(frozen=True, kw_only=True)
class PartProfile:
    """One part of a model.

    Attributes:
        name: As in `GraftedModel.parts`; "other" for modules outside these parts.
        parameters: Number of parameters.
        trained: Number of trained parameters.
        num_bytes: Size of its weights in memory.
        macs: Multiply-accumulates actually done in one forward pass at the workload's batch and length.
    """

    name: str
    parameters: int
    trained: int
    num_bytes: int
    macs: Macs


@dataclass(frozen=True, kw_only=True)
class ModelProfile:
    """One model: the graft, or the host alone.

    Attributes:
        parts: Its parts, in the order of the data flow.
        training_macs: Multiply-accumulates of a training step, forward and backward.
        measured: Time and peak memory; None if they weren't measured.
    """

    parts: tuple[PartProfile, ...]
    training_macs: int
    measured: Measurement | None

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(part.trained for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """Size of all weights in memory."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def macs(self) -> Macs:
        """Multiply-accumulates of one forward pass."""
        return sum((part.macs for part in self.parts), Macs())

    def part(self, name: str) -> PartProfile:
        """Return the part with a name.

        Raises:
            KeyError: The model has no such part.
        """
        return {part.name: part for part in self.parts}[name]


@dataclass(frozen=True, kw_only=True)
class GraftProfile:
    """The costs of a graft, and of its host alone with the same head.

    Attributes:
        host: Name of the host, or its model type if it has no name.
        donor: The donor layer and its model; None if only a host was profiled.
        workload: Batch, length and number format.
        alone: The host alone.
        grafted: The graft; None if only a host was profiled.
        positions: Number of positions of each text that go through the donor: 1 if the text is pooled first.
        full: Multiply-accumulates of the projections and the whole donor layer for these positions, as in the paper's
            formulas; None if only a host was profiled, or if the donor reads the text, and so every token. `added`
            counts only what is actually computed.
        per_token: The same as `full` if every token went through the graft.
    """

    host: str
    donor: str | None
    workload: Workload
    alone: ModelProfile
    grafted: ModelProfile | None
    positions: int
    full: Macs | None
    per_token: Macs | None

    @property
    def added(self) -> Macs | None:
        """Multiply-accumulates actually done in projections and donor."""
        if self.grafted is None:
            return None
        return sum((part.macs for part in self.grafted.parts if part.name in _GRAFT), Macs())


_GRAFT = ("proj_in", "donor", "donor_norm", "proj_out", "proj_out_norm", "gate")


def profile_graft(
    target: Target,
    donor: DonorShape = None,
    *,
    layer: int | None = None,
    config: GraftConfig | None = None,
    workload: Workload | None = None,
    measured: bool = False,
    token: str | bool | None = None,
) -> GraftProfile:
    """Compute the costs of a graft. This reads config.json and no weights.

    Args:
        target: A graft or a host: a folder, a Hub repo id or a loaded config.
        donor: For a host, the layer: a layer artifact, or a whole language model (as folder, repo id, GGUF file,
            `packaged:NAME`, config, or the content of its config.json). None: the host alone.
        layer: Index of the layer in a language model; negative numbers count from the end. None: the last one, or the
            layers of an artifact. If the donor reads the text, it has all layers up to this one.
        config: Settings of the graft, if target is a host; default: the paper's.
        workload: Batch, length, number format; default: 32 texts of 100 tokens in float32.
        measured: Also measure time and peak memory, each model in a new process with random weights.
        token: Hub token.

    Raises:
        ConfigError: You passed settings or a layer for a graft, which has its own, or a layer without a donor.
        GraftError: Host, donor and settings don't fit together, or a model doesn't run on shapes alone.
        SourceError: A folder or repo can't be read.
    """
    workload = workload or Workload()
    shape_config = graft_config(target, donor, layer=layer, config=config, token=token)
    alone = _profile(without_donor(shape_config), workload, measured)
    grafted, positions, full, per_token = None, 0, None, None
    if shape_config.donor is not None:
        grafted, positions = _profile(shape_config, workload, measured), workload.length
        if not shape_config.settings.reads_text:
            positions, full, per_token = _graft_alone(shape_config, workload)
    return GraftProfile(
        host=(shape_config.host or {}).get("name") or shape_config.host_config.model_type,
        donor=None if shape_config.donor is None else describe(shape_config.donor),
        workload=workload,
        alone=alone,
        grafted=grafted,
        positions=positions,
        full=full,
        per_token=per_token,
    )


def _profile(config: SurgeonGraftConfig, workload: Workload, measured: bool) -> ModelProfile:
    model = shape_of(config, workload.dtype)
    # Count before the model runs on shapes, because its tied weights are then separate.
    counts = model.parameter_counts()
    num_bytes = {name: _num_bytes(part) for name, part in model.parts().items()}
    with shapes_only(model):
        macs = count_macs(model, example_inputs(model, workload, labels=False), model.parts())
        # Stay in eval mode: dropout has no multiplications, and some families skip random layers in training mode.
        training = count_training_macs(model, example_inputs(model, workload, labels=True))
    parts = [
        PartProfile(
            name=name,
            parameters=total,
            trained=trained,
            num_bytes=num_bytes[name],
            macs=macs.pop(name, Macs()),
        )
        for name, (total, trained) in counts.items()
    ]
    parts += [PartProfile(name=name, parameters=0, trained=0, num_bytes=0, macs=rest) for name, rest in macs.items()]
    result = measure(config, workload) if measured else None
    return ModelProfile(parts=tuple(parts), training_macs=training, measured=result)


def _num_bytes(part: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in part.parameters())


def _graft_alone(config: SurgeonGraftConfig, workload: Workload) -> tuple[int, Macs, Macs]:
    """Return the positions of a text that go through the graft, and the full MACs for these and for every token."""
    model = shape_of(config, workload.dtype)
    input_shapes: list[torch.Size] = []
    proj_in: Any = model.proj_in
    handle = proj_in.register_forward_pre_hook(lambda _, args: input_shapes.append(args[0].shape))
    bare = _Graft(model)
    # Use at least two positions, because the donor skips some computations for a single one.
    length = max(workload.length, 2)
    with torch.no_grad(), shapes_only(model):
        model(**example_inputs(model, workload, labels=False))
        handle.remove()
        hidden = torch.empty(workload.batch, length, proj_in.in_features, dtype=getattr(torch, workload.dtype))
        macs = count_macs(bare, {"hidden": hidden}, {"graft": bare})["graft"]
    positions = sum(shape[1] for shape in input_shapes)
    return positions, _at_length(macs, length, positions), _at_length(macs, length, workload.length)


def _at_length(macs: Macs, length: int, new_length: int) -> Macs:
    """Scale to another length: attention grows with its square, everything else is linear."""
    return Macs(
        linear=macs.linear * new_length // length,
        attention=macs.attention * new_length**2 // length**2,
        rest=macs.rest * new_length // length,
    )


class _Graft(nn.Module):
    """The projections and the donor of a model, without its host and head."""

    def __init__(self, model: GraftedModel) -> None:
        super().__init__()
        parts = (model.proj_in, model.donor, model.proj_out, model.proj_out_norm)
        self.parts = nn.ModuleList(part for part in parts if part is not None)
        self._graft = model.graft

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._graft(hidden)
