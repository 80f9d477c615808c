"""What a grafted model's config.json says: host, donor, settings of the graft, labels."""

from dataclasses import field, fields
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from layer_surgeon.errors import GraftError
from layer_surgeon.graft.config import MODEL_TYPE, GraftConfig
from layer_surgeon.graft.tasks import TASKS
from layer_surgeon.graft.translate import hub_errors

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
        values, _ = SurgeonGraftConfig.get_config_dict(name, **place)
    if values.get("model_type") != SurgeonGraftConfig.model_type:
        raise GraftError(
            f"{name!r} is no grafted model: its model_type is {values.get('model_type')!r}, not "
            f"{SurgeonGraftConfig.model_type!r}. Make a graft with: surgeon graft {name}"
        )
    lacking = [key for key in ("host_config", "graft") if not isinstance(values.get(key), dict)]
    if lacking:
        raise GraftError(
            f"The config.json of the graft {name!r} lacks {' and '.join(lacking)}, so it was changed or damaged. "
            "Get it again, or make the graft again."
        )
    return SurgeonGraftConfig.from_dict(values)  # type: ignore[no-any-return]  # transformers is untyped here
