"""Models without weights: read or create their configs, and build their modules on the meta device."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import PretrainedConfig

from layer_surgeon._folders import expand_home
from layer_surgeon._loading import load_config, read_config
from layer_surgeon.checkpoint import open_checkpoint
from layer_surgeon.donor import DonorLayer, DonorStack, SurgeonDonorConfig
from layer_surgeon.donor.family import family_config
from layer_surgeon.errors import ConfigError, GraftError, LayerNotFoundError, LayerSurgeonError
from layer_surgeon.extract import LayerArtifact
from layer_surgeon.graft.build import graft_layer
from layer_surgeon.graft.config import ENCODER_OUTPUT, GraftConfig
from layer_surgeon.graft.donor_loading import SHAPE, Donor
from layer_surgeon.graft.hosts import auto_class
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.graft.modeling import GraftedModel
from layer_surgeon.graft.translate import hub_errors
from layer_surgeon.workspace import PACKAGED

Target: TypeAlias = "str | os.PathLike[str] | PretrainedConfig"
DonorShape: TypeAlias = "str | os.PathLike[str] | LayerArtifact | PretrainedConfig | Mapping[str, Any] | None"

_META = torch.device("meta")


def graft_config(
    target: Target,
    donor: DonorShape = None,
    *,
    layer: int | None = None,
    config: GraftConfig | None = None,
    token: str | bool | None = None,
) -> SurgeonGraftConfig:
    """Return the config of an existing graft, or of the graft that a host and a donor layer would make.

    Arguments and errors are those of `profile_graft`.
    """
    shape = _read_config(target, token)
    if isinstance(shape, SurgeonDonorConfig):
        raise GraftError(
            "The target is a donor layer. Name a host or a graft, and pass the layer with donor=... (--donor)."
        )
    if layer is not None and donor is None:
        raise ConfigError(
            f"You passed layer {layer}, but no language model to take it from. Name a host as the target and the "
            "language model with donor=... (--donor)."
        )
    if not isinstance(shape, SurgeonGraftConfig):
        settings = config or GraftConfig()
        return _new_config(shape, _new_donor(donor, layer, token, settings, shape), settings)
    if donor is not None or config is not None or layer is not None:
        raise ConfigError(
            "You passed a donor layer or settings, but a graft has its own donor layer and settings. Leave them out, "
            "or name a host instead."
        )
    return shape


def without_donor(config: SurgeonGraftConfig) -> SurgeonGraftConfig:
    """Return the config of the control arm: the host alone, with the same pooling and head."""
    alone = copy.deepcopy(config)
    # With the site embeddings, a host has no layers.
    alone.donor, alone.graft = None, {**alone.graft, "site": ENCODER_OUTPUT}
    return alone


def shape_of(config: SurgeonGraftConfig, dtype: str = "float32") -> GraftedModel:
    """Create a grafted model on the meta device, in eval mode, with shapes but no weights.

    Args:
        config: Its config.
        dtype: Number format of everything except the donor layer.
    """
    with _META:
        model: GraftedModel = GraftedModel._from_config(copy.deepcopy(config))
    donor, model.donor = model.donor, None
    model.to(getattr(torch, dtype))
    model.donor = donor
    return model.eval()  # type: ignore[no-any-return]  # transformers is untyped here


def _new_config(host: PretrainedConfig, donor: Donor | None, settings: GraftConfig) -> SurgeonGraftConfig:
    """Create a graft's config on the meta device, with the code that makes real grafts."""
    auto = auto_class(settings.task)
    if type(host) not in auto._model_mapping:
        raise GraftError(
            f"The host ({host.model_type}) doesn't support {settings.task}. Choose another host or another task."
        )
    with _META:
        model = auto.from_config(copy.deepcopy(host), trust_remote_code=False)
        result: SurgeonGraftConfig = graft_layer(model, donor, config=settings).config
    result.host = {"name": host.name_or_path or None, "commit": None}
    return result


def _new_donor(
    donor: DonorShape, layer: int | None, token: str | bool | None, settings: GraftConfig, host: PretrainedConfig
) -> Donor | None:
    """Create a donor on the meta device, with the shape of an artifact or of a language model's layers."""
    if donor is None:
        return None
    if isinstance(donor, Mapping):
        name, values = None, dict(donor)
    elif isinstance(donor, PretrainedConfig):
        name, values = donor.name_or_path or None, donor.to_dict()
    else:
        name = os.fspath(donor.path if isinstance(donor, LayerArtifact) else donor)
        values = _read_donor(name, token)
    if values.get("model_type") == SurgeonDonorConfig.model_type:
        if not values.get("layer_indices") or not values.get("donor_config"):
            raise GraftError(f"The config.json of {name or 'the donor'} does not describe a layer artifact completely.")
        _check_holds(values["layer_indices"], layer, name)
        stored = {key: values[key] for key in SHAPE if values.get(key) is not None}
        shape = SurgeonDonorConfig(**stored, source=values.get("source") or {"name": name})
    else:
        layer, num_layers = -1 if layer is None else layer, family_config(values).num_hidden_layers
        if not -num_layers <= layer < num_layers:
            raise LayerNotFoundError(
                f"layer is {layer}, but the donor has {num_layers} layers: choose 0 to {num_layers - 1}, or "
                f"-{num_layers} to -1."
            )
        index = layer % num_layers
        indices, embeddings = [index], None
        if settings.reads_text:
            is_own = settings.donor_tokens == "own"
            vocabulary = None if is_own else {"size": host.get_text_config().vocab_size, "name": host.name_or_path}
            indices, embeddings = list(range(index + 1)), {"vocabulary": vocabulary}
        shape = SurgeonDonorConfig(
            donor_config=values, layer_indices=indices, embeddings=embeddings, source={"name": name}
        )
    with _META:
        return DonorLayer(shape) if shape.embeddings is None else DonorStack(shape)


def _read_donor(name: str, token: str | bool | None) -> dict[str, Any]:
    """Read the config of a layer artifact or of a language model. For a file, this reads its header."""
    if name.startswith(PACKAGED) or Path(expand_home(name)).is_file():
        return dict(open_checkpoint(name, token=token).config)
    with hub_errors(f"The donor {name!r}"):
        return read_config(name, token=token)


def _check_holds(indices: list[int], layer: int | None, name: str | None) -> None:
    if layer is not None and layer not in indices:
        raise LayerNotFoundError(
            f"{name or 'The layer artifact'} holds layer {', '.join(map(str, indices))} and not layer {layer}. Leave "
            "layer out, or name the language model."
        )


def _read_config(target: Target, token: str | bool | None) -> PretrainedConfig:
    if isinstance(target, PretrainedConfig):
        return target
    name = os.fspath(target)
    try:
        with hub_errors(f"The host {name!r}"):
            return load_config(name, token=token)
    except (ValueError, KeyError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        raise GraftError(
            f"transformers doesn't know the config.json of {name!r}: {error} Name a graft or a text model."
        ) from error
