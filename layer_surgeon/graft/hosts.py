"""Host models: their kind, loading them, and reducing them to the part that a graft needs."""

import contextlib
import copy
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
)

from layer_surgeon._folders import expand_home
from layer_surgeon._loading import load_config, load_model
from layer_surgeon._model_types import GRAFT
from layer_surgeon._text import first_line
from layer_surgeon.checkpoint.licence import MAX_TEXT_BYTES, licence_in_card
from layer_surgeon.checkpoint.packaged import local_model
from layer_surgeon.donor.quiet import quiet_transformers
from layer_surgeon.errors import GraftError, LayerSurgeonError
from layer_surgeon.graft.translate import hub_errors
from layer_surgeon.tasks import DEFAULT_TASK, TASKS, HostKind, get_task

# Of each kind, one that is known well.
_EXAMPLES: dict[HostKind, str] = {
    "encoder": "bert-base-uncased",
    "decoder": "HuggingFaceTB/SmolLM2-135M",
    "encoder-decoder": "t5-base",
}


@dataclass(frozen=True, kw_only=True)
class OpenedHost:
    """A host ready for its graft.

    Attributes:
        model: The part of the host that the task needs.
        config: The config of the whole model, from which `new_host` can create the same part.
        name: The folder or repo id of the host; None if unknown.
        commit: The commit that was read; None if unknown.
        license: The licence that its model card states; None if it states none.
    """

    model: PreTrainedModel
    config: PretrainedConfig
    name: str | None
    commit: str | None
    license: str | None


def host_kind(config: PretrainedConfig) -> HostKind:
    """Return whether a model is an encoder (bidirectional), a decoder (left to right), or has both.

    This is derived from the config's flags and from transformers' tables. Masked language models are encoders. BERT is
    also in the table of causal models, for its decoder form, which `is_decoder` marks.
    """
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    if getattr(config, "is_decoder", False):
        return "decoder"
    if getattr(type(config), "is_encoder_decoder", False) is True:
        # The config of a separate encoder of such a model sets is_encoder_decoder to False.
        return "encoder-decoder"
    if getattr(config, "is_causal", True) is False or getattr(config, "use_bidirectional_attention", None) is True:
        return "encoder"
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        return "decoder"
    return "encoder"


def host_width(config: PretrainedConfig) -> int:
    """Return the width of the host's hidden states.

    Raises:
        GraftError: The config doesn't have it.
    """
    width = getattr(config.get_text_config(), "hidden_size", None)
    if not isinstance(width, int):
        raise GraftError(
            f"The config of the host ({config.model_type}) has no hidden_size, which sets the width of the "
            "projections. Choose a text model as host, such as bert-base-uncased."
        )
    return width


def open_host(
    host: str | os.PathLike[str] | PreTrainedModel,
    task: str = DEFAULT_TASK,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> OpenedHost:
    """Load a host from a folder or the Hub, or take a loaded one, and keep only the part that the task needs.

    Raises:
        SourceError: The folder or repo doesn't exist or may not be read, or the Hub can't be reached.
        GraftError: It is not a transformers text model with complete weights, or doesn't fit the task.
    """
    if isinstance(host, str | os.PathLike):
        model, commit = load_host(host, task, revision=revision, token=token)
        config = model.config
        name: str | None = expand_home(host)
    else:
        model = bare_host(host, task)
        config, commit, name = host.config, None, host.name_or_path or None
    licence = None if name is None else read_licence(name, commit, token)
    return OpenedHost(model=_needed_part(model, task), config=config, name=name, commit=commit, license=licence)


def load_host(
    source: str | os.PathLike[str],
    task: str = DEFAULT_TASK,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> tuple[PreTrainedModel, str | None]:
    """Load a small model from a folder or the Hub, in float32 because it will be trained.

    The model comes without a head, except for tasks that generate text.

    Returns:
        The model, and the commit that was read; None for a folder.

    Raises:
        SourceError: The folder or repo doesn't exist or may not be read, or the Hub can't be reached.
        GraftError: It is not a transformers text model with complete weights, or doesn't fit the task.
    """
    name = expand_home(source)
    path = local_model(name)
    commit = None
    with hub_errors(f"The host {name!r}"):
        if not Path(path).is_dir():
            # Read everything at one commit, because a branch may move between config, weights and tokenizer.
            commit = Path(hf_hub_download(path, "config.json", revision=revision, token=token)).parent.name
            revision = commit
        config = load_host_config(name, revision, token)
        _check_host(config, name, task)
        loader, keywords = _loader(config, task)
        with quiet_transformers(), _quantisation_errors(config, name):
            model, info = load_model(
                loader,
                name,
                revision=revision,
                token=token,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                # If peft is installed, transformers looks for adapters too, before 5.24 always at `main`.
                adapter_kwargs={} if commit is None else {"revision": commit},
                **keywords,
            )
    # transformers only logs missing weights, and uses random numbers instead.
    needed_ids = {id(tensor) for tensor in _needed_part(model, task).parameters()}
    needed_names = {key for key, tensor in model.named_parameters(remove_duplicate=False) if id(tensor) in needed_ids}
    missing = sorted(needed_names & set(info["missing_keys"]))
    if missing:
        raise GraftError(
            f"The weights of the host {name!r} lack {len(missing)} tensors of its model, such as {missing[0]}. "
            "They are incomplete or belong to another model. Get them again, or choose another host."
        )
    return model, commit


@contextlib.contextmanager
def _quantisation_errors(config: PretrainedConfig, name: str) -> Iterator[None]:
    """Explain errors of quantised hosts: each method needs its own package and fails in its own way."""
    try:
        yield
    except (ImportError, AttributeError, AssertionError, TypeError, ValueError) as error:
        if getattr(config, "quantization_config", None) is None or isinstance(error, LayerSurgeonError):
            raise
        raise GraftError(
            f"The weights of the host {name!r} are quantised and can't be loaded: {first_line(error)} Choose a "
            "version of the model in float32, float16 or bfloat16."
        ) from error


def new_host(config: PretrainedConfig, task: str = DEFAULT_TASK) -> PreTrainedModel:
    """Create the module that `open_host` returns, but with new weights."""
    loader, keywords = _loader(config, task)
    return _needed_part(loader.from_config(config, trust_remote_code=False, **keywords), task)


def bare_host(model: PreTrainedModel, task: str = DEFAULT_TASK) -> PreTrainedModel:
    """Return a loaded model without its head and pooler. It shares the parameters; the caller's object is unchanged.

    For tasks that generate text, the whole model is returned.

    Raises:
        GraftError: It is not a transformers text model, is a graft, or lacks the language head that the task needs.
    """
    if not isinstance(model, PreTrainedModel):
        raise GraftError(
            f"The host is a {type(model).__name__}; it must be a folder, a repo id or a loaded transformers model."
        )
    _refuse_graft(model.config, model.name_or_path or type(model).__name__)
    base = model.base_model
    _check_host(base.config, base.config.name_or_path or type(model).__name__, task)
    if get_task(task).generates:
        loader = auto_class(task)
        if type(model) is not loader._model_mapping.get(type(model.config), None):
            raise GraftError(
                f"The host is a {type(model).__name__}, which lacks the language head that {task} needs. "
                f"Load it with {loader.__name__}."
            )
        return model
    if getattr(base, "pooler", None) is None or not _takes_pooling_flag(base.config):
        return base
    bare = copy.copy(base)
    bare._modules = dict(base._modules)
    bare.pooler = None
    return bare


def read_licence(name: str, revision: str | None = None, token: str | bool | None = None) -> str | None:
    """Return the licence that a model card states; None if there is no card or it states none."""
    folder = Path(local_model(name))
    try:
        if folder.is_dir():
            card = folder / "README.md"
        elif revision is None:
            # A loaded model can have any name. We only know that the repo exists if we have read it ourselves.
            return None
        else:
            card = Path(hf_hub_download(name, "README.md", revision=revision, token=token))
        with card.open("rb") as file:
            text = file.read(MAX_TEXT_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return None
    return licence_in_card(text.removeprefix("\ufeff").lstrip()).get("license")


def mark_loaded(part: PreTrainedModel) -> None:
    """Keep `post_init` from re-initialising weights, also in modules added after loading (LoRA, new embeddings)."""
    if part.device.type != "meta":
        for module in part.modules():
            module._is_hf_initialized = True


def auto_class(task: str) -> Any:
    """Return the transformers Auto class that loads the host of a task: with its language head if the task needs it."""
    record = get_task(task)
    return getattr(transformers, record.auto) if record.generates else AutoModel


def _loader(config: PretrainedConfig, task: str) -> tuple[Any, dict[str, Any]]:
    """Return the Auto class that loads the host of a task, and its keyword arguments."""
    loader = auto_class(task)
    is_bare = loader is AutoModel and _takes_pooling_flag(config)
    return loader, {"add_pooling_layer": False} if is_bare else {}


def _needed_part(model: PreTrainedModel, task: str) -> PreTrainedModel:
    """Return the encoder of an encoder-decoder model if the task generates nothing; else the whole model."""
    if get_task(task).generates or host_kind(model.config) != "encoder-decoder":
        return model
    return model.get_encoder()


def load_host_config(name: str, revision: str | None = None, token: str | bool | None = None) -> PretrainedConfig:
    """Read the config of a host: a folder or a repo id.

    Raises:
        GraftError: It is not a transformers model, or its family is not known.
    """
    name = expand_home(name)
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise GraftError(
            f"The folder {name} holds no config.json, so it is not a transformers model. Name a folder that "
            "save_pretrained wrote, or a repo id such as bert-base-uncased."
        )
    try:
        return load_config(name, revision=revision, token=token)
    except (ValueError, KeyError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        raise GraftError(
            f"transformers doesn't know the config.json of the host {name!r}: {first_line(error)} "
            "Models with code of their own are not supported. Choose another host."
        ) from error


def _refuse_graft(config: PretrainedConfig, name: str) -> None:
    if config.model_type == GRAFT:
        raise GraftError(
            f"The host {name!r} is a graft, but a graft can't be the host of another one. Graft the layer onto the "
            "graft's own host instead."
        )


def _check_host(config: PretrainedConfig, name: str, task: str) -> None:
    _refuse_graft(config, name)
    if type(config) not in MODEL_MAPPING or _model_class(config).main_input_name != "input_ids":
        raise GraftError(
            f"The host {name!r} is a {config.model_type} model, which doesn't read text. Choose a text model, such as "
            "bert-base-uncased."
        )
    kind, record = host_kind(config), get_task(task)
    if kind not in record.hosts or type(config) not in auto_class(task)._model_mapping:
        tasks = ", ".join(other for other, traits in TASKS.items() if kind in traits.hosts and other != task)
        head = " with a language head" if record.generates else ""
        raise GraftError(
            f"The host {name!r} ({config.model_type}) is of kind {kind}, but {task} needs a host of kind "
            f"{record.hosts[0]}{head}, such as {_EXAMPLES[record.hosts[0]]}. Choose such a host, or another task: "
            f"{tasks}."
        )


def _model_class(config: PretrainedConfig) -> Any:
    classes = MODEL_MAPPING[type(config)]
    return classes[0] if isinstance(classes, tuple | list) else classes


def _takes_pooling_flag(config: PretrainedConfig) -> bool:
    return "add_pooling_layer" in inspect.signature(_model_class(config).__init__).parameters
