"""The arms of a study: the models that it compares. Each arm is an ordinary configuration; users add their own in YAML.

arms:
  - host                       # a built-in arm, by name
  - graft
  - name: graft-slow           # a custom arm: another arm, with changes
    like: graft
    finetune: {learning_rate: 1e-5}
  - name: middle-layer
    like: graft
    donor: {source: meta-llama/Llama-3.1-8B, layer: 16}
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

from layer_surgeon._limits import MAX_LAYERS, check_size
from layer_surgeon._settings import MAX_NAME, check_types, shown
from layer_surgeon._text import printable, without_secrets
from layer_surgeon.errors import ConfigError
from layer_surgeon.study.lora_settings import check_lora
from layer_surgeon.study.synthesis_config import check_synthetic
from layer_surgeon.workspace import layer_name, short_name, stack_name

Control = Literal["projections-only", "wide-head", "permuted", "shuffled", "cut"]
# Controls that train a block in the donor's place.
BLOCKS = ("projections-only", "wide-head")
DonorForm = Literal["layers", "stack", "model"]
_NO_DONOR: Mapping[str, Any] = MappingProxyType({"donor": None})
_READS: Mapping[str, Any] = MappingProxyType({"donor_reads": "text"})
_SLICE = re.compile(r"(\d{1,9}):(\d{1,9})")

# The question that each arm answers, and its changes to a graft with the study's host, donor and settings.
ARMS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "host": ("The host alone, with the same pooling and head: the vanilla model.", _NO_DONOR),
        "graft": ("The donor's layer, frozen, between two trained projections (the paper).", {}),
        "random": (
            "The same layer with random weights, frozen: does the layer's knowledge help, or only its shape?",
            {"graft": {"donor_init": "random"}},
        ),
        "random-trained": (
            "The same layer with random weights, trained: do more trained parameters do as well?",
            {"graft": {"donor_init": "random", "train_donor": True}},
        ),
        "donor-trained": ("The donor's layer, trained too.", {"graft": {"train_donor": True}}),
        "donor-only": (
            "The donor's layer right after the host's embeddings, without the host's layers.",
            {"graft": {"site": "embeddings"}},
        ),
        "projections-only": (
            "The same projections and head, without the layer: are the projections enough?",
            {"control": "projections-only"},
        ),
        "wide-head": (
            "A trained MLP in place of the graft, with as many trained parameters: is a larger head enough?",
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
        "pool-mean": ("The graft, pooled by the mean over the tokens.", {"graft": {"pooling": "mean"}}),
        "pool-mean-padding": (
            "The graft, pooled by the mean over tokens and padding.",
            {"graft": {"pooling": "mean_with_padding"}},
        ),
        "gated": (
            "host + gate x graft, with a gate that starts at zero: training starts from the host alone.",
            {"graft": {"residual": "gated"}},
        ),
        "matched": (
            "The graft with projections scaled to layer and host: does content matter, or only loudness?",
            {"graft": {"projection_init": "matched"}},
        ),
        "matched-random": (
            "The same with random weights in the layer, frozen: the fair control for matched.",
            {"graft": {"donor_init": "random", "projection_init": "matched"}},
        ),
        "stack": (
            "The donor's embeddings and first layers, frozen, read the text next to the host.",
            {"graft": _READS},
        ),
        "stack-random": (
            "The same with random weights: do embeddings and layers need to have learned anything?",
            {"graft": {**_READS, "donor_init": "random"}},
        ),
        "stack-permuted": (
            "The same with the weights of each matrix in random order: do only their sizes matter?",
            {"graft": _READS, "control": "permuted"},
        ),
        "stack-shuffled": (
            "The same, but the donor reads another text of the same set: does it matter what it reads?",
            {"graft": _READS, "control": "shuffled"},
        ),
        "stack-alone": (
            "A head on what the donor reads, without the host's output: is the host needed?",
            {"graft": {**_READS, "join": "replace"}, "finetune": {"train_host": "frozen"}},
        ),
        "cut": (
            "The donor cut to these layers, trained whole, with the mean over the tokens: is the host needed?",
            {"graft": {"pooling": "mean"}, "control": "cut"},
        ),
    }
)
# A larger model of the same family, for the arm larger-host.
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
    """The donor layers of an arm: a model and some of its layers.

    Attributes:
        source: A source that `surgeon extract` takes, or the folder of a layer artifact. Messages and
            files show `shown_source` instead, which has no passwords or signatures.
        layers: Indices; negative ones count from the end.
        revision: Branch, tag or commit.
        dtype: The number format to extract in; None keeps the donor's.
        form: What the study makes of the layers: layers; a stack, which reads text; or a model of only these layers.
        vocabulary: The host whose tokens a stack reads; None for the donor's own.
    """

    source: str
    layers: tuple[int, ...] = (-1,)
    revision: str | None = None
    dtype: str | None = None
    form: DonorForm = "layers"
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_size(len(self.layers), MAX_LAYERS, f"layers of {self.shown_source}", ConfigError)
        if not self.layers or not all(-MAX_LAYERS <= layer < MAX_LAYERS for layer in self.layers):
            raise ConfigError(
                f"The layers of the donor {self.shown_source} are {self.layers!r}. They must be one or several numbers "
                f"from {-MAX_LAYERS} to {MAX_LAYERS - 1}."
            )
        if self.form == "stack" and self.layers != tuple(range(len(self.layers))):
            raise ConfigError(
                f"A donor that reads text needs the first layers of {self.shown_source}, but the plan names the layers "
                f"{', '.join(map(str, self.layers))}. Name the first ones: donor: {{source: ..., layer: '0:9'}}."
            )
        if len(self.name) > MAX_NAME:
            raise ConfigError(
                f"The folder for the layers of {self.shown_source} would have a name of {len(self.name)} characters; "
                f"at most {MAX_NAME} are possible. Extract the layers with surgeon extract --output FOLDER, and give "
                "that folder as the donor."
            )

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read a donor from YAML: a source, or a mapping with source, layer, revision and dtype.

        Layers are numbers, or slices such as `0:9`; one of them or a list.

        Raises:
            ConfigError: The value is neither.
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
        if {"layer", "layers"} <= set(value):
            raise ConfigError(f"The donor {value['source']} has the keys layer and layers. Leave one of them out.")
        layers = value.get("layers", value.get("layer", -1))
        layers = tuple(layers) if isinstance(layers, list | tuple) else (layers,)
        layers = tuple(index for layer in layers for index in _expand(layer))
        if not layers or not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers):
            raise ConfigError(
                f"The layers of the donor {value['source']} are {shown(layers)}; they must be whole numbers, or "
                "slices such as '0:9'."
            )
        return cls(source=value["source"], layers=layers, revision=value.get("revision"), dtype=value.get("dtype"))

    @property
    def shown_source(self) -> str:
        """The source without the password or signature of a URL, for messages and files."""
        return without_secrets(self.source)

    @property
    def name(self) -> str:
        """The folder name, such as `Llama-3.1-8B-L-1`."""
        if self.form == "stack":
            host = None if self.vocabulary is None else without_secrets(self.vocabulary)
            return stack_name(self.shown_source, len(self.layers), host)
        return layer_name(self.shown_source, self.layers) + ("-model" if self.form == "model" else "")

    @property
    def text(self) -> str:
        """The model for messages, with its revision, dtype and vocabulary if they are set."""
        vocabulary = None if self.vocabulary is None else without_secrets(self.vocabulary)
        facts = (("revision", self.revision), ("dtype", self.dtype), ("vocabulary", vocabulary))
        details = [f"{name} {value}" for name, value in facts if value]
        return f"{self.shown_source} ({', '.join(details)})" if details else self.shown_source

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without secrets."""
        return {
            "source": self.shown_source,
            "layers": list(self.layers),
            "revision": self.revision,
            "dtype": self.dtype,
            # Left out for layers: the names of cells of earlier versions are hashes of these settings.
            **({} if self.form == "layers" else {"form": self.form}),
            **({} if self.vocabulary is None else {"vocabulary": without_secrets(self.vocabulary)}),
        }

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """Read the result of `as_dict`."""
        return cls(**content | {"layers": tuple(content["layers"])})


def _expand(layer: Any) -> tuple[Any, ...]:
    """Return the layers of a slice such as `0:9`; any other value as it is."""
    match = _SLICE.fullmatch(layer) if isinstance(layer, str) else None
    if match is None:
        return (layer,)
    first, end = int(match[1]), int(match[2])
    check_size(end - first, MAX_LAYERS, f"layers {layer}", ConfigError)
    return tuple(range(first, end))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm, with every default filled in.

    Attributes:
        name: The name in tables.
        kind: The built-in arm that this arm is, or is based on.
        host: A host that `surgeon graft` takes.
        donor: The donor layers; None for the host alone.
        graft: Fields of `GraftConfig`.
        finetune: Fields of `FinetuneConfig`, which override the study's.
        lora: Settings of peft's `LoraConfig` for the host; None trains the host's own weights.
        control: A control that no graft is: a block that is trained in the donor's place, as wide as the donor; a donor
            with permuted weights, or with the states of other texts; or the donor cut to its layers.
        synthetic: Settings of `surgeon synthesize`, if a language model writes the training texts.
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
                f"An arm is called {self.name!r}; a name has at most {MAX_NAME} characters, all of them printable."
            )
        if self.kind not in ARMS:
            raise ConfigError(f"The arm {self.name} is of the kind {self.kind!r}. The kinds are: {', '.join(ARMS)}.")
        if "task" in self.graft:
            raise ConfigError(
                f"The arm {self.name} sets a task under graft, but all arms of a study learn the same task. "
                "Set task at the top of the plan."
            )
        if self.lora is not None:
            check_lora(self.name, self.lora)
        if self.synthetic is not None:
            check_synthetic(self.synthetic)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without secrets, which `from_dict` reads."""
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        content["host"] = without_secrets(self.host)
        content["donor"] = None if self.donor is None else self.donor.as_dict()
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in content.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the result of `as_dict`."""
        donor = content["donor"]
        return cls(**{**content, "donor": None if donor is None else DonorSpec.from_dict(donor)})

    @property
    def text(self) -> str:
        """What the arm is, and the question that it answers."""
        return ARMS[self.kind][0]

    @property
    def grafts_nothing(self) -> bool:
        """Whether the model has no graft: it is a host alone, has a block in its place, or is the donor cut short."""
        return self.donor is None or self.control in (*BLOCKS, "cut")

    @property
    def host_name(self) -> str:
        """The host's name for tables."""
        return short_name(without_secrets(self.host))


def is_called(wanted: str | None, arm: str) -> bool:
    """Return whether an arm has the wanted name, without or with a host: `graft` matches `graft@roberta-base` too."""
    return wanted in (arm, arm.partition("@")[0])


_KEYS = ("name", "like", "host", "donor", "graft", "finetune", "lora", "control", "synthetic")


class NoDonorError(ConfigError):
    """An arm needs the study's donor, and the plan names none."""


def parse_arm(
    value: Any, *, host: str, donor: DonorSpec | None, graft: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]
) -> Arm:
    """Read an arm from YAML: a name, or a mapping that changes the settings of a named arm.

    Args:
        value: The arm in the plan.
        host: The study's host.
        donor: The study's donor.
        graft: The study's graft settings.
        others: The other arms of the plan, by name, which `like` can refer to.

    Raises:
        NoDonorError: The arm needs the study's donor.
        ConfigError: An arm or a key is unknown, or the arm lacks a setting.
    """
    arm_spec: Mapping[str, Any] = {"name": value, "like": value} if isinstance(value, str) else value
    if not isinstance(arm_spec, Mapping) or not isinstance(arm_spec.get("name"), str):
        raise ConfigError(f"An arm is {shown(value)}; it must be a name, or a mapping with a name and some changes.")
    unknown = sorted(map(str, set(arm_spec) - set(_KEYS)))
    if unknown:
        raise ConfigError(
            f"The arm {arm_spec['name']} has the unknown key {unknown[0]!r}. The keys are: {', '.join(_KEYS)}."
        )
    kind, settings = inherit(arm_spec, others)
    for key in ("graft", "finetune"):
        if not isinstance(settings.get(key, {}), Mapping):
            raise ConfigError(
                f"{key} of the arm {arm_spec['name']} is {shown(settings[key])}; "
                "it must be a mapping of `name: value` lines."
            )
    arm_host = settings.get("host") or (_LARGER.get(host) if kind == "larger-host" else host)
    if arm_host is None:
        raise ConfigError(
            f"No larger model of the same family as {host} is known for the arm {arm_spec['name']}. Name one in the "
            "plan: {name: larger-host, host: ...}."
        )
    own_donor = DonorSpec.parse(settings["donor"]) if settings.get("donor") is not None else None
    arm_donor = own_donor if "donor" in settings else donor
    if arm_donor is None and "donor" not in settings:
        raise NoDonorError(
            f"The arm {arm_spec['name']} needs a donor, and the study has none. Add a line to the plan: donor: MODEL."
        )
    control = settings.get("control")
    if control not in (None, *get_args(Control)):
        raise ConfigError(
            f"control of the arm {arm_spec['name']} is {shown(control)}; it must be one of "
            f"{', '.join(get_args(Control))}."
        )
    if control is not None and arm_donor is None:
        takes = "takes its width from" if control in BLOCKS else "needs"
        raise ConfigError(f"The control {arm_spec['name']} {takes} a donor, and has none. Name a donor in the plan.")
    # An arm without a donor would refuse or ignore settings about the donor.
    own_graft = dict(settings.get("graft", {}))
    has_graft = arm_donor is not None and control != "cut"
    study_graft = {k: v for k, v in graft.items() if has_graft or k in ("pooling", "dropout")}
    if control in BLOCKS:
        # A block has no layer to match. Its training must not depend on how the study initialises its grafts.
        study_graft.pop("projection_init", None)
    arm_graft = {**study_graft, **own_graft}
    arm = Arm(
        name=arm_spec["name"],
        kind=kind,
        host=arm_host,
        donor=arm_donor and _with_form(arm_donor, control, arm_graft, arm_host),
        graft=arm_graft,
        finetune=dict(settings.get("finetune", {})),
        lora=settings.get("lora"),
        control=control,
        synthetic=settings.get("synthetic"),
    )
    _check_at(arm)
    return arm


def _check_at(arm: Arm) -> None:
    """Refuse a name such as `host@10 epochs`: the arm would be taken for the reference, see `is_called`."""
    _, at, suffix = arm.name.partition("@")
    if at and suffix != arm.host_name:
        raise ConfigError(
            f"An arm is called {arm.name}. Only the name of the arm's host can follow an @: {arm.host_name}. Give the "
            "arm a name without @."
        )


def _with_form(donor: DonorSpec, control: str | None, graft: Mapping[str, Any], host: str) -> DonorSpec:
    """Return the donor with what an arm needs of it: layers, a stack with its vocabulary, or a model."""
    if control == "cut":
        return replace(donor, form="model", vocabulary=None)
    if graft.get("donor_reads") != "text":
        return replace(donor, form="layers", vocabulary=None)
    return replace(donor, form="stack", vocabulary=None if graft.get("donor_tokens") == "own" else host)


def inherit(arm_spec: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Follow `like` to a built-in arm; return its name and the merged settings, where later arms override earlier."""
    like = arm_spec.get("like") or (arm_spec["name"] if arm_spec["name"] in ARMS else "graft")
    changes = {key: value for key, value in arm_spec.items() if key not in ("name", "like")}
    if not isinstance(like, str):
        raise ConfigError(f"like of the arm {arm_spec['name']} is {shown(like)}; it must be the name of an arm.")
    if like in others and like != arm_spec["name"]:
        remaining_arms = {name: value for name, value in others.items() if name != like}
        kind, base = inherit(others[like], remaining_arms)
    elif like in ARMS:
        kind, base = like, dict(ARMS[like][1])
    else:
        close_names = get_close_matches(like, [*ARMS, *others], n=1)
        hint = f"Did you mean {close_names[0]}?" if close_names else f"The arms are: {', '.join([*ARMS, *others])}."
        raise ConfigError(f"There is no arm {like!r}. {hint}")
    for key, value in changes.items():
        merge = isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and key != "donor"
        base[key] = {**base[key], **value} if merge else value
    return kind, base
