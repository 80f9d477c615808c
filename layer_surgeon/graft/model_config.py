"""The config.json of a grafted model: host, donor, settings of the graft, labels."""

import contextlib
import functools
import json
import logging
import os
from dataclasses import field, fields
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from layer_surgeon._folders import expand_home
from layer_surgeon._limits import check_config_sizes
from layer_surgeon._loading import read_config
from layer_surgeon._model_types import GRAFT
from layer_surgeon.errors import GraftError
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.translate import config_errors, hub_errors
from layer_surgeon.tasks import get_task

# Labels are stored at the top level, as in every transformers config.
_LABEL_FIELDS = ("num_labels", "id2label")

logger = logging.getLogger(__name__)


class SurgeonGraftConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is untyped here
    """Config of a `GraftedModel`.

    Attributes:
        host_config: The host's own config.
        host: The origin of the host: `name` (repo id or path as given), and `commit` and `license` (None if unknown).
        donor: The donor layer: `name`, `commit`, `license` and `base_model` of its model, `layer_indices`, `sha256` of
            its weights file, `hidden_size`, and `config`, from which a layer of the same shape can be built. None for
            the control arm, a host alone.
        graft: The fields of `GraftConfig`, except the labels; `pooling` and `attention` are never None here.
        untrained: The graft is new, and no training has begun.
    """

    model_type = GRAFT
    sub_configs = {"host_config": AutoConfig}

    host_config: Any = None
    host: dict[str, Any] | None = None
    donor: dict[str, Any] | None = None
    graft: dict[str, Any] = field(default_factory=dict)
    untrained: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # Check the sizes before anything is built, because the file may be untrusted.
        stored = {"host_config": self.host_config, "donor": self.donor, "id2label": self.id2label, **kwargs}
        check_config_sizes(stored, "the graft", GraftError)
        _check_donor(self.donor)
        if isinstance(self.host_config, dict):
            self.host_config = _config_from_dict(self.host_config)
        # A stored graft has its scales, or none: auto is only for new ones. Grafts of earlier versions name no value.
        if self.graft.get("projection_init", "auto") == "auto":
            self.graft = {**self.graft, "projection_init": "default"}
        self.graft = graft_fields(GraftConfig.from_settings(None, _without_int8(self.graft)))
        attention = getattr(self.host_config, "_attn_implementation", None)
        # Generation and its data collators read this. For all other tasks, a graft is a single stack.
        self.is_encoder_decoder = get_task(self.task).is_encoder_decoder
        super().__post_init__(**kwargs)
        # transformers resets this to None for the host, but a loaded host has already chosen an implementation.
        if attention is not None and self._attn_implementation is None:
            self.host_config._attn_implementation = attention
        # Validate once more, now with the labels.
        _ = self.settings

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a config; `donor` is then an argument for the model, which the Auto classes pass here first."""
        passed = {"donor": kwargs.pop("donor")} if "donor" in kwargs else {}
        read = super().from_dict(config_dict, **kwargs)
        if not kwargs.get("return_unused_kwargs"):
            return read
        config, unused = read
        return config, {**unused, **passed}

    @property
    def settings(self) -> GraftConfig:
        """The settings of the graft, with the labels."""
        labels = None
        # transformers gives every config two labels by default.
        if get_task(self.task).labels and self.id2label is not None:
            labels = {int(key): name for key, name in self.id2label.items()}
        return _validated(json.dumps({**self.graft, "id2label": labels}, default=repr))

    @property
    def frozen_donor(self) -> dict[str, Any] | None:
        """The donor, if it is frozen and so not in the graft's own weights; else None."""
        return None if self.graft["train_donor"] else self.donor

    @property
    def task(self) -> str:
        """What the model does: the name of a task."""
        return str(self.graft["task"])

    @property
    def hidden_size(self) -> int:
        """The host's width."""
        return int(self.get_text_config().hidden_size)

    @property
    def pad_token_id(self) -> int | None:
        """The host's padding token; None if it has none."""
        return getattr(self.get_text_config(), "pad_token_id", None)

    @pad_token_id.setter
    def pad_token_id(self, value: int | None) -> None:
        self.get_text_config().pad_token_id = value

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """Return the text config of the host."""
        if self.host_config is None:
            return self
        return self.host_config.get_text_config(decoder=decoder, encoder=encoder)


@functools.lru_cache
def _validated(settings: str) -> GraftConfig:
    """Validate settings in JSON.

    The result is cached by value. A config can't keep it, because callers change its fields in place.
    """
    return GraftConfig.from_settings(None, json.loads(settings))


def _without_int8(settings: Any) -> Any:
    """Replace a donor dtype that earlier versions had. Files never held the integers, only the setting."""
    if isinstance(settings, dict) and settings.get("donor_dtype") == "int8":
        logger.warning(
            "This graft was saved with donor_dtype int8, which has been removed because it used more memory than "
            "bfloat16. Its donor layer is loaded in bfloat16."
        )
        return {**settings, "donor_dtype": "bfloat16"}
    return settings


def _check_donor(donor: Any) -> None:
    """Refuse a donor that lacks fields that every graft has, or has them with another type."""
    if donor is None:
        return
    values = donor if isinstance(donor, dict) else {}
    shape, indices = values.get("config"), values.get("layer_indices")
    if (
        not isinstance(shape, dict)
        or not isinstance(shape.get("donor_config"), dict)
        or not isinstance(shape.get("layer_indices"), list)
        or not isinstance(embeddings := shape.get("embeddings"), dict | None)
        or not isinstance((embeddings or {}).get("vocabulary"), dict | None)
        or not isinstance(indices, list)
        or not all(type(index) is int for index in indices)
        or type(values.get("hidden_size")) is not int
        or not isinstance(values.get("sha256"), str | None)
    ):
        raise GraftError(
            "The donor in the graft's config.json has no valid config, layer_indices, hidden_size or sha256. Get the "
            "graft again, or make it again."
        )


def graft_fields(settings: GraftConfig) -> dict[str, Any]:
    """Return the settings as they are stored, without the labels."""
    names = [setting.name for setting in fields(settings) if setting.name not in _LABEL_FIELDS]
    return {name: getattr(settings, name) for name in names}


def _config_from_dict(values: dict[str, Any]) -> PretrainedConfig:
    model_type = values.get("model_type")
    if model_type == GRAFT:
        raise GraftError(
            "The host of this graft is a graft too, which is not supported. Make a graft with the inner graft's own "
            "host instead."
        )
    if model_type not in CONFIG_MAPPING:
        raise GraftError(
            f"The graft's host is a {model_type!r}, which this version of transformers doesn't know. "
            "Update transformers, or make the graft again."
        )
    return CONFIG_MAPPING[model_type].from_dict(values)


def open_graft_config(config: Any, name: str, hub_settings: dict[str, Any]) -> SurgeonGraftConfig:
    """Return the config that was passed to from_pretrained, or read the stored one.

    Args:
        config: As passed to from_pretrained: a config, a folder or a repo id to read it from, or None.
        name: The graft's folder or repo id.
        hub_settings: revision, token, subfolder, ...

    Raises:
        GraftError: It is not a graft, or its config can't be used.
        SourceError: It can't be read.
    """
    if not isinstance(config, SurgeonGraftConfig):
        return read_graft_config(os.fspath(config or name), hub_settings)
    # An Auto class built it from the stored config, which was not checked yet.
    with contextlib.suppress(OSError):
        read_config(name, **hub_settings)
    return config


def read_graft_config(name: str, hub_settings: dict[str, Any]) -> SurgeonGraftConfig:
    """Read the config of a graft.

    Args:
        name: The graft's folder or repo id.
        hub_settings: revision, token, subfolder, ...

    Raises:
        GraftError: It is not a graft, or its config can't be used.
        SourceError: It can't be read.
    """
    folder = Path(expand_home(name)) / (hub_settings.get("subfolder") or "")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise GraftError(
            f"The folder {name} holds no config.json, so it is not a grafted model. Name a folder that surgeon graft "
            "or finetune has made, or make one with: surgeon graft bert-base-uncased"
        )
    with hub_errors(f"The graft {name!r}"):
        values = read_config(name, **hub_settings)
    if values.get("model_type") != SurgeonGraftConfig.model_type:
        raise GraftError(
            f"{name!r} is not a grafted model: its model_type is {values.get('model_type')!r}, not "
            f"{SurgeonGraftConfig.model_type!r}. Make a graft with: surgeon graft {name}"
        )
    invalid = [key for key in ("host_config", "graft") if not isinstance(values.get(key), dict)]
    invalid += [] if isinstance(values.get("host"), dict | None) else ["host"]
    if invalid:
        raise GraftError(
            f"The config.json of the graft {name!r} has no valid {' and '.join(invalid)}. It was changed or damaged. "
            "Get it again, or make the graft again."
        )
    with config_errors(f"The graft {name!r}"):
        return SurgeonGraftConfig.from_dict(values)  # type: ignore[no-any-return]  # transformers is untyped here
