"""Host models: what kind one is, how it is loaded, and how it is cut down to the part that a graft is set on."""

import copy
import inspect
import os
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
)

from layer_surgeon.errors import GraftError
from layer_surgeon.graft.quiet import quiet_transformers
from layer_surgeon.graft.translate import hub_errors

HostKind = Literal["encoder", "decoder", "encoder-decoder"]


def host_kind(config: PretrainedConfig) -> HostKind:
    """Whether a model reads a text in both directions, left to right, or with two stacks.

    Derived from the config's own flags and from transformers' tables: what is trained to fill in masked tokens reads in
    both directions (BERT is in the table of causal models too, for its decoder form, which `is_decoder` marks).
    """
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    if getattr(config, "is_decoder", False):
        return "decoder"
    if getattr(config, "is_causal", True) is False or getattr(config, "use_bidirectional_attention", None) is True:
        return "encoder"
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        return "decoder"
    return "encoder"


def host_width(config: PretrainedConfig) -> int:
    """The width of the host's hidden states.

    Raises:
        GraftError: The config does not say.
    """
    width = getattr(config.get_text_config(), "hidden_size", None)
    if not isinstance(width, int):
        raise GraftError(
            f"The config of the host ({config.model_type}) has no hidden_size, so that the projections' width is not "
            "known. Choose a text model as host, such as bert-base-uncased."
        )
    return width


def load_host(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> tuple[PreTrainedModel, str | None]:
    """Load a small model without any head, in float32 (it will be trained), from a folder or the Hub.

    Returns:
        The model, and the commit that it was read at; None for a folder.

    Raises:
        SourceError: There is no such folder or repo, it may not be read, or the Hub can't be reached.
        GraftError: It is not a transformers text model with whole weights.
    """
    name = os.fspath(source)
    commit = None
    with hub_errors(f"The host {name!r}"):
        if not Path(name).expanduser().is_dir():
            # Everything is read at one commit: a branch may move between config, weights and tokenizer.
            commit = Path(hf_hub_download(name, "config.json", revision=revision, token=token)).parent.name
            revision = commit
        config = _load_config(name, revision, token)
        _check_host(config, name)
        keywords = {"add_pooling_layer": False} if _takes_pooling_flag(config) else {}
        with quiet_transformers():
            model, info = AutoModel.from_pretrained(
                name,
                config=config,
                revision=revision,
                token=token,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                **keywords,
            )
    # transformers only logs this, and goes on with random numbers in their place.
    missing = sorted(info["missing_keys"])
    if missing:
        raise GraftError(
            f"The weights of the host {name!r} lack {len(missing)} tensors of its model, such as {missing[0]}. "
            "They are of another model or incomplete: get them again, or choose another host."
        )
    return model, commit


def new_host(config: PretrainedConfig) -> PreTrainedModel:
    """The host's module with fresh weights, as `load_host` would load it."""
    keywords = {"add_pooling_layer": False} if _takes_pooling_flag(config) else {}
    return AutoModel.from_config(config, **keywords)


def bare_host(model: PreTrainedModel) -> PreTrainedModel:
    """A loaded model without its head and pooler: the same parameters, the caller's own object left as it is.

    Raises:
        GraftError: It is not a transformers text model.
    """
    if not isinstance(model, PreTrainedModel):
        raise GraftError(
            f"The host is a {type(model).__name__}; it must be a folder, a repo id or a loaded transformers model."
        )
    base = model.base_model
    _check_host(base.config, base.config.name_or_path or type(model).__name__)
    if getattr(base, "pooler", None) is None or not _takes_pooling_flag(base.config):
        return base
    bare = copy.copy(base)
    bare._modules = dict(base._modules)
    bare.pooler = None
    return bare


def _load_config(name: str, revision: str | None, token: str | bool | None) -> PretrainedConfig:
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise GraftError(
            f"The folder {name} holds no config.json, so it is not a transformers model. Name a folder that "
            "save_pretrained wrote, or a repo id such as bert-base-uncased."
        )
    try:
        return AutoConfig.from_pretrained(name, revision=revision, token=token, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise GraftError(
            f"The config.json of the host {name!r} is not one that transformers knows: {_first_line(error)} "
            "Models that bring code of their own are not run; choose another host."
        ) from error


def _check_host(config: PretrainedConfig, name: str) -> None:
    if type(config) not in MODEL_MAPPING or _model_class(config).main_input_name != "input_ids":
        raise GraftError(
            f"The host {name!r} is a {config.model_type}, which is not a model that reads text. "
            "Choose a text model, such as bert-base-uncased."
        )
    if host_kind(config) == "encoder-decoder":
        raise GraftError(
            f"The host {name!r} ({config.model_type}) is an encoder-decoder model; those are not there yet. "
            "Choose an encoder such as bert-base-uncased or a decoder such as HuggingFaceTB/SmolLM2-135M."
        )


def _model_class(config: PretrainedConfig) -> Any:
    classes = MODEL_MAPPING[type(config)]
    return classes[0] if isinstance(classes, tuple | list) else classes


def _takes_pooling_flag(config: PretrainedConfig) -> bool:
    return "add_pooling_layer" in inspect.signature(_model_class(config).__init__).parameters


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
