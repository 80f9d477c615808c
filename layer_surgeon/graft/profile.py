"""What a graft costs: parameters, multiply-accumulates, memory and time, the host alone beside it.

Everything but memory and time comes from shapes: models are made on the meta device, from their config.json alone.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from layer_surgeon.donor import DonorLayer, SurgeonDonorConfig
from layer_surgeon.donor.family import family_config
from layer_surgeon.errors import ConfigError, GraftError, LayerNotFoundError, LayerSurgeonError
from layer_surgeon.extract import LayerArtifact
from layer_surgeon.graft.auto import GraftedModel
from layer_surgeon.graft.build import graft_layer
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.configuration import SurgeonGraftConfig
from layer_surgeon.graft.donors import describe
from layer_surgeon.graft.flops import Macs, count_macs, count_training_macs, shapes_only
from layer_surgeon.graft.measure import Measurement, Workload, example_inputs, measure
from layer_surgeon.graft.tasks import TASKS
from layer_surgeon.graft.translate import hub_errors

Target: TypeAlias = "str | os.PathLike[str] | PretrainedConfig"
DonorShape: TypeAlias = "str | os.PathLike[str] | LayerArtifact | PretrainedConfig | Mapping[str, Any] | None"

_META = torch.device("meta")
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class PartProfile:
    """One part of a model.

    Attributes:
        name: host, proj_in, donor, proj_out, gate or head; "other" for what belongs to none.
        parameters: All of its parameters.
        trained: Those that training changes.
        num_bytes: Its weights in memory.
        macs: Multiply-accumulates of one forward pass at the workload's batch and length, as they are done.
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
        parts: Its parts, in the order in which data goes through them.
        training_macs: Multiply-accumulates of a training step, forward and backward.
        measured: Time and peak memory; None where they weren't measured.
    """

    parts: tuple[PartProfile, ...]
    training_macs: int
    measured: Measurement | None

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        """The parameters that training changes."""
        return sum(part.trained for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """All weights in memory."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def macs(self) -> Macs:
        """Multiply-accumulates of one forward pass."""
        return sum((part.macs for part in self.parts), Macs())

    def part(self, name: str) -> PartProfile:
        """A part by its name.

        Raises:
            KeyError: The model has no such part.
        """
        return {part.name: part for part in self.parts}[name]


@dataclass(frozen=True, kw_only=True)
class GraftProfile:
    """What a graft costs, beside its host alone with the same head.

    Attributes:
        host: Name of the host, or its family where it has none.
        donor: Which layer of which model; None where only a host was asked for.
        workload: Batch, length and number format.
        alone: The host alone.
        grafted: The graft; None where only a host was asked for.
        positions: How many positions of each text go through the graft: 1 where a text is pooled first.
        full: Multiply-accumulates of the graft's formulas, projections and whole donor layer, for these positions; None
            where only a host was asked for. `added` is what is really done.
        per_token: The same if every token went through the graft.
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
        """Multiply-accumulates of the graft, projections and donor, as they are done."""
        if self.grafted is None:
            return None
        return sum((part.macs for part in self.grafted.parts if part.name in _GRAFT), Macs())


_GRAFT = ("proj_in", "donor", "proj_out", "gate")


def profile_graft(
    target: Target,
    donor: DonorShape = None,
    *,
    layer: int = -1,
    config: GraftConfig | None = None,
    workload: Workload | None = None,
    measured: bool = False,
    token: str | bool | None = None,
) -> GraftProfile:
    """Say what a graft costs. Reads config.json and no weights.

    Args:
        target: A graft or a host: a folder, a Hub repo id or a loaded config.
        donor: For a host, the layer: a layer artifact, or a whole language model (as folder, repo id, config, or the
            content of its config.json). None: the host alone.
        layer: Which layer of a language model; negative ones count from the end.
        config: Settings of the graft, for a host; default: the paper's.
        workload: Batch, length, number format; default: 32 texts of 100 tokens in float32.
        measured: Also measure time and peak memory, each model in a process of its own with random weights.
        token: Hub token.

    Raises:
        ConfigError: The workload can't be used, or settings were given for a graft that has its own.
        GraftError: Host, donor and settings don't fit each other; a model can't be followed on shapes alone.
        SourceError: A folder or repo can't be read.
    """
    workload = workload or Workload()
    _check(workload)
    shape = _config_of(target, token)
    if isinstance(shape, SurgeonDonorConfig):
        raise GraftError("That is a donor layer. Name a host or a graft, and the layer with donor=... (--donor).")
    if not isinstance(shape, SurgeonGraftConfig):
        graft_config, name = _new_config(shape, _donor_layer(donor, layer, token), config), shape.name_or_path
    elif donor is not None or config is not None:
        raise ConfigError("A graft has its own donor layer and settings. Leave them out, or name a host instead.")
    else:
        graft_config, name = shape, (shape.host or {}).get("name")
    alone = _profile(_without_donor(graft_config), workload, measured)
    grafted, positions, full, per_token = None, 0, None, None
    if graft_config.donor is not None:
        grafted = _profile(graft_config, workload, measured)
        positions, full, per_token = _graft_alone(graft_config, workload)
    return GraftProfile(
        host=name or graft_config.host_config.model_type,
        donor=_donor_name(graft_config),
        workload=workload,
        alone=alone,
        grafted=grafted,
        positions=positions,
        full=full,
        per_token=per_token,
    )


def shape_of(config: SurgeonGraftConfig, dtype: str = "float32") -> GraftedModel:
    """A grafted model on the meta device, in eval mode: shapes, and no weights.

    Args:
        config: Its config.
        dtype: Number format of everything but the donor layer.
    """
    with _META:
        model: GraftedModel = GraftedModel._from_config(copy.deepcopy(config))
    donor, model.donor = model.donor, None
    model.to(getattr(torch, dtype))
    model.donor = donor
    return model.eval()  # type: ignore[no-any-return]  # transformers is untyped here


def _profile(config: SurgeonGraftConfig, workload: Workload, measured: bool) -> ModelProfile:
    model = shape_of(config, workload.dtype)
    counts = model.parameter_counts()
    modules = {name: part for name in counts if isinstance(part := getattr(model, name), nn.Module)}
    num_bytes = {name: _num_bytes(getattr(model, name)) for name in counts}
    with shapes_only(model):
        macs = count_macs(model, example_inputs(model, workload, labels=False), modules)
        training = count_training_macs(model.train(), example_inputs(model, workload, labels=True))
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


def _num_bytes(part: nn.Module | nn.Parameter) -> int:
    tensors = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _graft_alone(config: SurgeonGraftConfig, workload: Workload) -> tuple[int, Macs, Macs]:
    """How many positions of a text go through the graft, and its full computation for these and for every token."""
    model = shape_of(config, workload.dtype)
    seen: list[torch.Size] = []
    proj_in: Any = model.proj_in
    handle = proj_in.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    bare = _Graft(model)
    # At least two positions: of one alone, not everything has to be computed.
    length = max(workload.length, 2)
    with torch.no_grad(), shapes_only(model):
        model(**example_inputs(model, workload, labels=False))
        handle.remove()
        hidden = torch.empty(workload.batch, length, proj_in.in_features, dtype=getattr(torch, workload.dtype))
        macs = count_macs(bare, {"hidden": hidden}, {"graft": bare})["graft"]
    positions = sum(shape[1] for shape in seen)
    return positions, _at_length(macs, length, positions), _at_length(macs, length, workload.length)


def _at_length(macs: Macs, length: int, wanted: int) -> Macs:
    """Each position goes through the weights once, and meets every position in attention."""
    return Macs(
        linear=macs.linear * wanted // length,
        attention=macs.attention * wanted**2 // length**2,
        rest=macs.rest * wanted // length,
    )


class _Graft(nn.Module):
    """Projections and donor of a model by themselves."""

    def __init__(self, model: GraftedModel) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for part in (model.proj_in, model.donor, model.proj_out) if part is not None)
        self._graft = model.graft

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._graft(hidden)


def _new_config(host: PretrainedConfig, donor: DonorLayer | None, config: GraftConfig | None) -> SurgeonGraftConfig:
    """The config of a new graft, put together on the meta device by what also makes real ones."""
    settings = config or GraftConfig()
    auto = getattr(transformers, TASKS[settings.task].auto) if TASKS[settings.task].generates else AutoModel
    if type(host) not in auto._model_mapping:
        raise GraftError(
            f"The host ({host.model_type}) is no model for {settings.task}. Choose another host or another task."
        )
    with _META:
        model = auto.from_config(copy.deepcopy(host))
        result: SurgeonGraftConfig = graft_layer(model, donor, config=settings).config
    return result


def _without_donor(config: SurgeonGraftConfig) -> SurgeonGraftConfig:
    """The control arm: the host alone, with the same pooling and head."""
    alone = copy.deepcopy(config)
    alone.donor = None
    return alone


def _donor_layer(donor: DonorShape, layer: int, token: str | bool | None) -> DonorLayer | None:
    """A layer on the meta device, of an artifact's or a whole language model's shape."""
    if donor is None:
        return None
    if isinstance(donor, Mapping):
        name, values = None, dict(donor)
    elif isinstance(donor, PretrainedConfig):
        name, values = donor.name_or_path or None, donor.to_dict()
    else:
        name = os.fspath(donor.path if isinstance(donor, LayerArtifact) else donor)
        with hub_errors(f"The donor {name!r}"):
            values, _ = PretrainedConfig.get_config_dict(name, token=token)
    if values.get("model_type") == SurgeonDonorConfig.model_type:
        shape = SurgeonDonorConfig(donor_config=values["donor_config"], layer_indices=values["layer_indices"])
        shape.source = values.get("source") or {"name": name}
    else:
        number = family_config(values).num_hidden_layers
        if not -number <= layer < number:
            raise LayerNotFoundError(
                f"layer is {layer}, but the donor has {number} layers: choose 0 to {number - 1}, or -{number} to -1."
            )
        shape = SurgeonDonorConfig(donor_config=values, layer_indices=[layer % number], source={"name": name})
    with _META:
        return DonorLayer(shape)


def _config_of(target: Target, token: str | bool | None) -> PretrainedConfig:
    if isinstance(target, PretrainedConfig):
        return target
    name = os.fspath(target)
    try:
        with hub_errors(f"The host {name!r}"):
            return AutoConfig.from_pretrained(name, token=token, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        raise GraftError(
            f"The config.json of {name!r} is not one that transformers knows: {error} Name a graft or a text model."
        ) from error


def _donor_name(config: SurgeonGraftConfig) -> str | None:
    return None if config.donor is None else describe(config.donor)


def _check(workload: Workload) -> None:
    for name in ("batch", "length", "repeats"):
        value = getattr(workload, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    if workload.dtype not in _DTYPES:
        raise ConfigError(f"dtype is {workload.dtype!r}; it must be one of {', '.join(_DTYPES)}.")
