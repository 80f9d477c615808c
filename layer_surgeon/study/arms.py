"""The arms of a study: what is compared. Each is an ordinary configuration; users add their own in YAML.

arms:
  - host                       # by name
  - graft
  - name: graft-slow           # of one's own: like another, with changes
    like: graft
    finetune: {learning_rate: 1e-5}
  - name: middle-layer
    like: graft
    donor: {source: meta-llama/Llama-3.1-8B, layer: 16}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, Self

from layer_surgeon._limits import MAX_LAYERS, check_size
from layer_surgeon._text import printable, without_secrets
from layer_surgeon.errors import ConfigError
from layer_surgeon.study.checked import MAX_NAME, check_types, shown
from layer_surgeon.study.synthesis_config import SynthesisConfig
from layer_surgeon.workspace import layer_name, short_name

PACKAGED = "packaged:"
Control = Literal["projections-only", "wide-head"]
_NO_DONOR: Mapping[str, Any] = MappingProxyType({"donor": None})

# What each arm changes in a graft with the study's host, donor and settings; and the question that it answers.
ARMS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "host": ("The host alone, with the same pooling and head: the vanilla model.", _NO_DONOR),
        "graft": ("The donor's layer, frozen, between two trained projections (the paper).", {}),
        "random": (
            "The same layer with random weights, frozen: is it what the layer knows, or its form?",
            {"graft": {"donor_init": "random"}},
        ),
        "random-trained": (
            "The same layer from random weights, trained: do more trained parameters do as well?",
            {"graft": {"donor_init": "random", "train_donor": True}},
        ),
        "donor-trained": ("The donor's layer, trained along.", {"graft": {"train_donor": True}}),
        "donor-only": (
            "The donor's layer behind the host's embeddings, without the host's layers.",
            {"graft": {"site": "embeddings"}},
        ),
        "projections-only": (
            "The same projections and head with nothing between: do the projections do it?",
            {"control": "projections-only"},
        ),
        "wide-head": (
            "A trained MLP in place of the graft, with as many trained parameters: does a larger head do it?",
            {"control": "wide-head"},
        ),
        "lora": (
            "The host alone, trained with LoRA (r 8, alpha 16, dropout 0.1).",
            {"donor": None, "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1}},
        ),
        "larger-host": ("A larger host alone: is a graft worth more than a larger model?", _NO_DONOR),
        "zerogen": (
            "The host alone, trained on texts that a language model wrote for each label (ZeroGen).",
            {"donor": None, "synthetic": {}},
        ),
        "pool-mean": ("The graft on the mean over the tokens.", {"graft": {"pooling": "mean"}}),
        "pool-mean-padding": (
            "The graft on the mean over tokens and padding.",
            {"graft": {"pooling": "mean_with_padding"}},
        ),
        "gated": (
            "host + gate x graft, the gate starting at zero: training starts at the host itself.",
            {"graft": {"residual": "gated"}},
        ),
        "matched": (
            "The graft with projections as loud as layer and host: is it what the layer says, or how loudly?",
            {"graft": {"projection_init": "matched"}},
        ),
        "matched-random": (
            "The same with random weights in the layer, frozen: the fair control of matched.",
            {"graft": {"donor_init": "random", "projection_init": "matched"}},
        ),
    }
)
# Of peft's LoraConfig, what changes the adapters and nothing else. Others import a module by its name (megatron_core),
# or load weights and data (loftq_config, eva_config, arrow_config).
_LORA = (
    *("r", "lora_alpha", "lora_dropout", "bias", "lora_bias", "use_rslora", "use_dora", "init_lora_weights"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "fan_in_fan_out"),
)
_LORA_STARTS = (True, False, "gaussian", "orthogonal", "olora", "pissa")
# A larger one of the same family, for the arm that asks for it.
_LARGER = MappingProxyType(
    {
        "bert-base-uncased": "bert-large-uncased",
        "google-bert/bert-base-uncased": "google-bert/bert-large-uncased",
        "FacebookAI/roberta-base": "FacebookAI/roberta-large",
        "roberta-base": "roberta-large",
    }
)


@dataclass(frozen=True, kw_only=True)
class DonorSpec:
    """Which layers of which model.

    Attributes:
        source: What `surgeon extract` takes, the folder of a layer artifact, or `packaged:NAME`. What is shown or
            stored of it is without passwords and signatures; see `shown_source`.
        layers: Indices; negative ones count from the end.
        revision: Branch, tag or commit.
        dtype: The number format to extract in; None keeps the donor's.
    """

    source: str
    layers: tuple[int, ...] = (-1,)
    revision: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_size(len(self.layers), MAX_LAYERS, f"layers of {self.shown_source}", ConfigError)
        if not self.layers or not all(-MAX_LAYERS <= layer < MAX_LAYERS for layer in self.layers):
            raise ConfigError(f"The layers of the donor {self.shown_source} are {self.layers!r}; no model has these.")
        if len(self.name) > MAX_NAME:
            raise ConfigError(
                f"The layers of {self.shown_source} would be in a folder with a name of {len(self.name)} characters; "
                f"at most {MAX_NAME} are possible. Extract them with surgeon extract --output FOLDER, and name that "
                "folder as the donor."
            )

    @classmethod
    def parse(cls, value: Any) -> Self:
        """From YAML: a source, or a mapping with source, layer (one or a list), revision, dtype.

        Raises:
            ConfigError: It is neither.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(source=value)
        known = {"source", "layer", "layers", "revision", "dtype"}
        if not isinstance(value, Mapping) or not isinstance(value.get("source"), str) or set(value) - known:
            raise ConfigError(
                f"A donor is {shown(value)}; it must be a model, or a mapping such as "
                "{source: meta-llama/Llama-3.1-8B, layer: -1}."
            )
        layers = value.get("layers", value.get("layer", -1))
        layers = tuple(layers) if isinstance(layers, list | tuple) else (layers,)
        if not layers or not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers):
            raise ConfigError(
                f"The layers of the donor {value['source']} are {shown(layers)}; they must be whole numbers."
            )
        return cls(source=value["source"], layers=layers, revision=value.get("revision"), dtype=value.get("dtype"))

    @property
    def shown_source(self) -> str:
        """The source as it is shown and stored: without the password or signature of a URL."""
        return without_secrets(self.source)

    @property
    def name(self) -> str:
        """As a folder name: `Llama-3.1-8B-L-1`."""
        return layer_name(self.shown_source.removeprefix(PACKAGED), self.layers)

    @property
    def text(self) -> str:
        """The model, with what was asked of it, for people."""
        more = [f"{name} {value}" for name, value in (("revision", self.revision), ("dtype", self.dtype)) if value]
        return f"{self.shown_source} ({', '.join(more)})" if more else self.shown_source

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types, without secrets."""
        return {
            "source": self.shown_source,
            "layers": list(self.layers),
            "revision": self.revision,
            "dtype": self.dtype,
        }

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """What `as_dict` gave."""
        return cls(**content | {"layers": tuple(content["layers"])})


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm, with nothing left open.

    Attributes:
        name: As in tables.
        kind: The built-in arm that it is, or is like.
        host: What `surgeon graft` takes, or `packaged:NAME`.
        donor: None: the host alone.
        graft: Fields of `GraftConfig`.
        finetune: Fields of `FinetuneConfig`, laid over the study's.
        lora: Settings of peft's `LoraConfig` for the host; None: the host is trained itself.
        control: Something trained in the donor's place, as wide as the donor.
        synthetic: Settings of `surgeon synthesize`: the training texts are written by a model.
    """

    name: str
    kind: str
    host: str
    donor: DonorSpec | None
    graft: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] | None = None
    control: Control | None = None
    synthetic: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if len(self.name) > MAX_NAME or printable(self.name, keep="") != self.name:
            raise ConfigError(
                f"An arm is called {self.name!r}; a name has at most {MAX_NAME} characters, and none that can't be "
                "printed."
            )
        if self.kind not in ARMS:
            raise ConfigError(f"The arm {self.name} is of the kind {self.kind!r}. There are: {', '.join(ARMS)}.")
        if "task" in self.graft:
            raise ConfigError(f"The arm {self.name} has a task under graft; in a study, all arms learn the same task.")
        if self.lora is not None:
            _check_lora(self.name, self.lora)
        if self.synthetic is not None:
            # Which model is to write is asked for when it is to write.
            SynthesisConfig.from_settings({key: value for key, value in self.synthetic.items() if key != "file"})

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types, without secrets; `from_dict` reads it again."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        content["host"] = without_secrets(self.host)
        content["donor"] = None if self.donor is None else self.donor.as_dict()
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in content.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What `as_dict` gave."""
        donor = content["donor"]
        return cls(**{**content, "donor": None if donor is None else DonorSpec.from_dict(donor)})

    @property
    def text(self) -> str:
        """What it is for."""
        return ARMS[self.kind][0]

    @property
    def host_name(self) -> str:
        """The host, for people."""
        return short_name(without_secrets(self.host).removeprefix(PACKAGED))


def _check_lora(arm: str, settings: Mapping[str, Any]) -> None:
    unknown = sorted(set(settings) - set(_LORA))
    if unknown:
        raise ConfigError(f"lora of the arm {arm} has the setting {unknown[0]!r}. Possible are: {', '.join(_LORA)}.")
    start = settings.get("init_lora_weights", True)
    if start not in _LORA_STARTS:
        raise ConfigError(
            f"init_lora_weights of the arm {arm} is {start!r}; it must be true, false, "
            f"{', '.join(str(name) for name in _LORA_STARTS[2:])}."
        )


def is_called(wanted: str | None, arm: str) -> bool:
    """Whether an arm is the wanted one, or that with one of several hosts: `graft` is `graft@roberta-base` too."""
    return wanted in (arm, arm.partition("@")[0])


_KEYS = ("name", "like", "host", "donor", "graft", "finetune", "lora", "control", "synthetic")


def parse_arm(
    value: Any, *, host: str, donor: DonorSpec | None, graft: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]
) -> Arm:
    """An arm from YAML: a name, or a mapping that says how it differs from a named one.

    Args:
        value: What the plan says.
        host: The study's host.
        donor: The study's donor.
        graft: The study's graft settings.
        others: Arms of the same plan that were said before, for `like`.

    Raises:
        ConfigError: There is no such arm or key, or the arm lacks something.
    """
    said: Mapping[str, Any] = {"name": value, "like": value} if isinstance(value, str) else value
    if not isinstance(said, Mapping) or not isinstance(said.get("name"), str):
        raise ConfigError(f"An arm is {shown(value)}; it must be a name, or a mapping with a name and what it changes.")
    unknown = sorted(map(str, set(said) - set(_KEYS)))
    if unknown:
        raise ConfigError(f"The arm {said['name']} has the key {unknown[0]!r}. There are: {', '.join(_KEYS)}.")
    kind, settings = _inherit(said, others)
    for key in ("graft", "finetune"):
        if not isinstance(settings.get(key, {}), Mapping):
            raise ConfigError(
                f"{key} of the arm {said['name']} is {shown(settings[key])}; it must be `name: value` lines."
            )
    chosen = settings.get("host") or (_LARGER.get(host) if kind == "larger-host" else host)
    if chosen is None:
        raise ConfigError(
            f"No larger model of the family of {host} is known for the arm {said['name']}. Say which: "
            "{name: larger-host, host: ...}."
        )
    own_donor = DonorSpec.parse(settings["donor"]) if settings.get("donor") is not None else None
    used = own_donor if "donor" in settings else donor
    if used is None and "donor" not in settings:
        raise ConfigError(f"The arm {said['name']} needs a donor, and the study names none. Say: donor: MODEL.")
    control = settings.get("control")
    if control not in (None, "projections-only", "wide-head"):
        raise ConfigError(f"control is {shown(control)} in {said['name']}; it must be projections-only or wide-head.")
    if control is not None and used is None:
        raise ConfigError(f"The arm {said['name']} is as wide as a donor that it stands for, and has none. Name one.")
    # What is about the donor would be refused by, or mean nothing to, an arm without one.
    own = dict(settings.get("graft", {}))
    shared = {k: v for k, v in graft.items() if used is not None or k in ("pooling", "dropout")}
    if control is not None:
        # Nothing is there to be matched, and a control is the same training whatever the study's grafts begin with.
        shared.pop("projection_init", None)
    return Arm(
        name=said["name"],
        kind=kind,
        host=chosen,
        donor=used,
        graft={**shared, **own},
        finetune=dict(settings.get("finetune", {})),
        lora=settings.get("lora"),
        control=control,
        synthetic=settings.get("synthetic"),
    )


def _inherit(said: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The built-in arm at the root, and the settings along the way; mappings are laid over each other."""
    like = said.get("like") or (said["name"] if said["name"] in ARMS else "graft")
    own = {key: value for key, value in said.items() if key not in ("name", "like")}
    if not isinstance(like, str):
        raise ConfigError(f"The arm {said['name']} is like {shown(like)}; it must be the name of an arm.")
    if like in others and like != said["name"]:
        rest = {name: value for name, value in others.items() if name != like}
        kind, base = _inherit(others[like], rest)
    elif like in ARMS:
        kind, base = like, dict(ARMS[like][1])
    else:
        near = get_close_matches(like, [*ARMS, *others], n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join([*ARMS, *others])}."
        raise ConfigError(f"There is no arm {like!r}. {hint}")
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and key != "donor"
        base[key] = {**base[key], **value} if both else value
    return kind, base
