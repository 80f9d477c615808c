"""What a grafted model's config.json says: host, donor, settings of the graft, labels."""

import contextlib
import os
from dataclasses import field, fields
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from layer_surgeon._limits import check_config_sizes
from layer_surgeon._loading import read_config
from layer_surgeon.errors import GraftError
from layer_surgeon.graft.config import MODEL_TYPE, GraftConfig
from layer_surgeon.graft.tasks import TASKS
from layer_surgeon.graft.translate import config_errors, hub_errors

# Labels are stored where every transformers config has them, at the top.
_LABEL_FIELDS = ("num_labels", "id2label")


class SurgeonGraftConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is untyped here
    """Config of a `GraftedModel`.

    Attributes:
        host_config: The host's own config.
        host: Where the host came from: `name` (repo id or path as given) and `commit` (None where not known).
        donor: The donor layer: `name`, `commit`, `license` and `base_model` of its model, `layer_indices`, `sha256` of
            its weights' file, `dtype` of that file, and `config`, from which a layer of the same shape can be built.
            None for a host alone, the control arm.
        graft: The fields of `GraftConfig`, labels apart; `pooling` and `attention` are never None here.
    """

    model_type = MODEL_TYPE
    sub_configs = {"host_config": AutoConfig}

    host_config: Any = None
    host: dict[str, Any] | None = None
    donor: dict[str, Any] | None = None
    graft: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self, **kwargs: Any) -> None:
        # Before anything is made of them: the numbers are a stranger's.
        stored = {"host_config": self.host_config, "donor": self.donor, "id2label": self.id2label, **kwargs}
        check_config_sizes(stored, "the graft", GraftError)
        _check_donor(self.donor)
        if isinstance(self.host_config, dict):
            self.host_config = _config_from_dict(self.host_config)
        self.graft = graft_fields(GraftConfig.from_settings(None, self.graft))
        attention = getattr(self.host_config, "_attn_implementation", None)
        # Generation, and what collates batches for it, reads this; to all other tasks a graft is one stack.
        self.is_encoder_decoder = self.task == "seq2seq"
        super().__post_init__(**kwargs)
        # transformers hands None down to the parts, but a loaded host has chosen already.
        if attention is not None and self._attn_implementation is None:
            self.host_config._attn_implementation = attention

    @property
    def settings(self) -> GraftConfig:
        """The settings of the graft, with the labels."""
        labels = None
        # Every config of transformers has two labels, if nobody says otherwise.
        if TASKS[self.task].labels and self.id2label is not None:
            labels = {int(key): name for key, name in self.id2label.items()}
        return GraftConfig.from_settings(None, {**self.graft, "id2label": labels})

    @property
    def task(self) -> str:
        """What the model does, such as `text-classification`."""
        return str(self.graft["task"])

    @property
    def hidden_size(self) -> int:
        """The host's width."""
        return int(self.get_text_config().hidden_size)

    @property
    def pad_token_id(self) -> int | None:
        """The host's padding token, where it has one."""
        return getattr(self.get_text_config(), "pad_token_id", None)

    @pad_token_id.setter
    def pad_token_id(self, value: int | None) -> None:
        self.get_text_config().pad_token_id = value

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """The part of the config that speaks of tokens: the host's."""
        if self.host_config is None:
            return self
        return self.host_config.get_text_config(decoder=decoder, encoder=encoder)


def _check_donor(donor: Any) -> None:
    """Refuse a reference to a donor layer that lacks what every graft has written."""
    if donor is None:
        return
    shape = donor.get("config") if isinstance(donor, dict) else None
    indices = donor.get("layer_indices") if isinstance(donor, dict) else None
    if (
        not isinstance(shape, dict)
        or not isinstance(shape.get("donor_config"), dict)
        or not isinstance(shape.get("layer_indices"), list)
        or not isinstance(indices, list)
        or not all(type(index) is int for index in indices)
        or type(donor.get("hidden_size")) is not int
        or not isinstance(donor.get("sha256"), str | None)
    ):
        raise GraftError(
            "The donor in the graft's config.json lacks its config, layer_indices or hidden_size, or has "
            "them or its sha256 in another form. Get the graft again, or make it again."
        )


def graft_fields(settings: GraftConfig) -> dict[str, Any]:
    """The settings as they are stored, labels apart."""
    return {entry.name: getattr(settings, entry.name) for entry in fields(settings) if entry.name not in _LABEL_FIELDS}


def _config_from_dict(values: dict[str, Any]) -> PretrainedConfig:
    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise GraftError(
            f"The graft's host is a {model_type!r}, which this version of transformers doesn't know. "
            "Update transformers, or make the graft again."
        )
    return CONFIG_MAPPING[model_type].from_dict(values)


def open_graft_config(config: Any, name: str, place: dict[str, Any]) -> SurgeonGraftConfig:
    """The config of a graft: the given one, or the one that is stored.

    Args:
        config: As given to from_pretrained: a config, a folder or a repo id to read it from, or None.
        name: The graft's folder or repo id.
        place: revision, token, subfolder, ...

    Raises:
        GraftError: It is no graft, or what is stored can't be used.
        SourceError: It can't be read.
    """
    if not isinstance(config, SurgeonGraftConfig):
        return read_graft_config(os.fspath(config or name), place)
    # Auto classes have made it of the stored one, which nothing has checked yet.
    with contextlib.suppress(OSError):
        read_config(name, **place)
    return config


def read_graft_config(name: str, place: dict[str, Any]) -> SurgeonGraftConfig:
    """The config of a graft in a folder or a repo; `place`: revision, token, subfolder, ...

    Raises:
        GraftError: It is no graft.
        SourceError: It can't be read.
    """
    folder = Path(name).expanduser() / (place.get("subfolder") or "")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise GraftError(
            f"The folder {name} holds no config.json, so it is no grafted model. Name a folder that surgeon graft or "
            "finetune has made, or make one with: surgeon graft bert-base-uncased"
        )
    with hub_errors(f"The graft {name!r}"):
        values = read_config(name, **place)
    if values.get("model_type") != SurgeonGraftConfig.model_type:
        raise GraftError(
            f"{name!r} is no grafted model: its model_type is {values.get('model_type')!r}, not "
            f"{SurgeonGraftConfig.model_type!r}. Make a graft with: surgeon graft {name}"
        )
    lacking = [key for key in ("host_config", "graft") if not isinstance(values.get(key), dict)]
    lacking += [] if isinstance(values.get("host"), dict | None) else ["host"]
    if lacking:
        raise GraftError(
            f"The config.json of the graft {name!r} lacks {' and '.join(lacking)}, so it was changed or damaged. "
            "Get it again, or make the graft again."
        )
    with config_errors(f"The graft {name!r}"):
        return SurgeonGraftConfig.from_dict(values)  # type: ignore[no-any-return]  # transformers is untyped here
