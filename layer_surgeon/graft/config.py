"""The settings of a graft: the paper's defaults, checked where they are made. Light to import: no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, TypeVar, get_args

from layer_surgeon.errors import ConfigError

Task = Literal["text-classification"]
Pooling = Literal["cls", "mean", "mean_with_padding", "last", "none"]
Attention = Literal["bidirectional", "causal"]
Residual = Literal["none", "gated"]
DonorInit = Literal["pretrained", "random"]
DonorDtype = Literal["float32", "bfloat16", "float16"]

ENCODER_OUTPUT = "encoder_output"

_T = TypeVar("_T")


def _option(default: _T, text: str) -> _T:
    """A field with the one sentence that documents it; the command line shows the same sentence."""
    value: _T = field(default=default, metadata={"help": text})
    return value


@dataclass(frozen=True, kw_only=True)
class GraftConfig:
    """Settings of one graft. The defaults are the paper's (section 3.1, table 20 and its published code).

    Raises:
        ConfigError: A value is of the wrong kind or out of range, or two settings contradict each other.
    """

    task: Task = _option("text-classification", "What the grafted model does.")
    num_labels: int | None = _option(None, "Number of labels; default: as many as id2label has, and 2 without it.")
    id2label: Mapping[int, str] | None = _option(None, 'Names of the labels, as JSON: {"0": "bad", "1": "good"}.')
    pooling: Pooling | None = _option(
        None, "Which vector of a text goes through the graft; default: cls for encoder hosts, last for decoder hosts."
    )
    attention: Attention | None = _option(
        None, "How the donor layer attends; default: bidirectional for encoder hosts, causal for decoder hosts."
    )
    site: str | int = _option(ENCODER_OUTPUT, "Where the graft sits: encoder_output is behind the host's last layer.")
    residual: Residual = _option(
        "none", "none: the graft replaces the host's vector; gated: host + gate x graft, the gate starting at zero."
    )
    donor_init: DonorInit = _option(
        "pretrained", "pretrained, or random: the same layer with random weights, as a control."
    )
    train_donor: bool = _option(False, "Train the donor layer too, instead of leaving it as it is.")
    dropout: float = _option(0.2, "Dropout in the head.")
    projection_bias: bool = _option(False, "Give the two projections a bias.")
    donor_dtype: DonorDtype = _option("float32", "Number format of the donor layer's weights in memory.")

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            value, choices = getattr(self, name), get_args(kind)
            optional = name in ("pooling", "attention")
            _check(self, name, value in choices or (optional and value is None), f"one of {', '.join(choices)}")
        for name in ("train_donor", "projection_bias"):
            _check(self, name, isinstance(getattr(self, name), bool), "true or false")
        number = isinstance(self.dropout, int | float) and not isinstance(self.dropout, bool)
        _check(self, "dropout", number and math.isfinite(self.dropout) and 0 <= self.dropout < 1, "from 0 to below 1")
        _check(self, "site", self.site == ENCODER_OUTPUT, f"{ENCODER_OUTPUT!r}: other places are not there yet")
        if self.pooling == "none":
            raise ConfigError(
                f"pooling is 'none', but {self.task} needs one vector per text. Choose cls, mean, mean_with_padding "
                "or last."
            )
        self._check_labels()

    @classmethod
    def from_settings(cls, config: "GraftConfig | None" = None, settings: Mapping[str, Any] | None = None) -> Self:
        """`config` (default: the paper's) with `settings` laid over it.

        Raises:
            ConfigError: A setting has an unknown name, or a value that can't be used.
        """
        settings = settings or {}
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ConfigError(f"There is no setting {unknown[0]!r} for a graft. There are: {', '.join(sorted(known))}.")
        base = {} if config is None else {name: getattr(config, name) for name in known}
        return cls(**(base | dict(settings)))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels in the order of their ids; LABEL_0, LABEL_1, ... where none are given."""
        if self.id2label is not None:
            return tuple(self.id2label[index] for index in range(len(self.id2label)))
        return tuple(f"LABEL_{index}" for index in range(2 if self.num_labels is None else self.num_labels))

    def _check_labels(self) -> None:
        whole = isinstance(self.num_labels, int) and not isinstance(self.num_labels, bool) and self.num_labels >= 1
        _check(self, "num_labels", self.num_labels is None or whole, "a whole number of at least 1")
        if self.id2label is None:
            return
        expected = 'a name for each id from 0 upwards, such as {"0": "bad", "1": "good"}'
        _check(self, "id2label", isinstance(self.id2label, Mapping) and len(self.id2label) > 0, expected)
        # JSON has only strings for keys.
        names = {int(key) if str(key).isdecimal() else key: name for key, name in self.id2label.items()}
        _check(self, "id2label", set(names) == set(range(len(self.id2label))), expected)
        _check(self, "id2label", all(isinstance(name, str) and name for name in names.values()), expected)
        _check(self, "id2label", len(set(names.values())) == len(names), expected + ", each name once")
        if self.num_labels not in (None, len(names)):
            raise ConfigError(
                f"num_labels is {self.num_labels}, but id2label names {len(names)} labels. Leave one of the two out."
            )
        object.__setattr__(self, "id2label", dict(sorted(names.items())))


_CHOICES: dict[str, Any] = {
    "task": Task,
    "pooling": Pooling,
    "attention": Attention,
    "residual": Residual,
    "donor_init": DonorInit,
    "donor_dtype": DonorDtype,
}


def _check(config: GraftConfig, name: str, good: bool, expected: str) -> None:
    if not good:
        raise ConfigError(f"{name} is {getattr(config, name)!r}; it must be {expected}.")
