"""The settings of a graft, with the paper's defaults. They are validated on creation. Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from layer_surgeon._limits import MAX_LABELS, check_size
from layer_surgeon._settings import Settings, check_types, option
from layer_surgeon.errors import ConfigError
from layer_surgeon.tasks import DEFAULT_TASK, TASKS, get_task, task_names

Pooling = Literal["cls", "mean", "mean_with_padding", "last", "none"]
Attention = Literal["bidirectional", "causal"]
Residual = Literal["none", "gated"]
DonorInit = Literal["pretrained", "random"]
DonorDtype = Literal["float32", "bfloat16", "float16"]
ProjectionInit = Literal["auto", "default", "matched"]
DonorReads = Literal["host", "text"]
DonorTokens = Literal["host", "own"]
Join = Literal["concat", "gated", "replace"]
DonorPooling = Literal["mean", "last"]

ENCODER_OUTPUT = "encoder_output"
EMBEDDINGS = "embeddings"
_DROPOUT = 0.2


@dataclass(frozen=True, kw_only=True)
class GraftConfig(Settings):
    """Settings of one graft.

    The defaults are the paper's (section 3.1, table 20 and its published code), except `projection_init`, which is
    `default` in the paper.

    Raises:
        ConfigError: A value has the wrong type or is out of range, or two settings contradict each other.
    """

    task: str = option(DEFAULT_TASK, "What the grafted model does.", task_names)
    num_labels: int | None = option(None, "Number of labels; default: as many as id2label has, and 2 without it.")
    id2label: Mapping[int, str] | None = option(None, 'Names of the labels, as JSON: {"0": "bad", "1": "good"}.')
    pooling: Pooling | None = option(
        None,
        "How a text's token vectors become one vector; default: mean for feature extraction; for classification cls "
        "(encoder hosts), last (decoder hosts) or mean (encoder-decoder hosts).",
    )
    attention: Attention | None = option(
        None, "How the donor layer attends; default: causal for decoder hosts, bidirectional for all others."
    )
    site: str | int = option(
        ENCODER_OUTPUT,
        "Where the graft is applied. encoder_output: after the host's last layer; a number: after that layer (from 0; "
        "-1 is the last); embeddings: after the embeddings, and all layers of the host are left out.",
    )
    residual: Residual = option(
        "none", "none: the graft replaces the host's vector; gated: host + gate x graft, and the gate starts at zero."
    )
    donor_init: DonorInit = option("pretrained", "Weights of the donor layer: pretrained, or random as a control.")
    train_donor: bool = option(False, "Train the donor layer too, instead of freezing it.")
    dropout: float = option(_DROPOUT, "Dropout in the head.")
    projection_bias: bool = option(False, "Give the two projections a bias.")
    projection_init: ProjectionInit = option(
        "auto",
        "How the projections start. default: PyTorch's initial weights, as in the paper; matched: the same weights "
        "times a fixed scale, so that the graft's output has the same RMS as the host's vectors; auto: matched if the "
        "output would be more than ten times as large, with a notice, else default.",
    )
    proj_out_norm: bool = option(False, "Put a trained LayerNorm after proj_out.")
    donor_dtype: DonorDtype = option("float32", "Number format of the donor layer's weights in memory.")
    donor_reads: DonorReads = option(
        "host",
        "host: the donor layer gets the host's vectors, as in the paper; text: the donor is a stack, the first layers "
        "of its model, and reads the text itself. graft sets text for a stack.",
    )
    donor_tokens: DonorTokens = option(
        "host",
        "For a donor that reads text. host: it reads the host's tokens; own: it reads the tokens of its own tokenizer "
        "(text classification and feature extraction). graft sets what the stack was extracted for.",
    )
    join: Join | None = option(
        None,
        "For a donor that reads text. concat: the head gets the host's and the donor's vector; gated: host + gate x "
        "donor, and the gate starts at zero; replace: the donor alone, as a control; default: concat for tasks with a "
        "head of ours, else gated.",
    )
    donor_pooling: DonorPooling | None = option(
        None,
        "For a donor that reads text. How the donor's states of a text become one vector, if the join needs one: mean "
        "(default) or last.",
    )

    def __post_init__(self) -> None:
        check_types(self, skip=("id2label",))
        self.check("dropout", 0 <= self.dropout < 1, "from 0 to below 1")
        self._check_site()
        self._check_donor()
        self._check_reading()
        if self.projection_init == "matched" and self.proj_out_norm:
            raise ConfigError(
                "projection_init is 'matched' and proj_out_norm is true, but the norm would undo the scale of "
                "proj_out. Choose one of the two."
            )
        self._check_task()
        self._check_labels()

    @property
    def reads_text(self) -> bool:
        """Whether the donor reads the text itself."""
        return self.donor_reads == "text"

    @property
    def joins_vectors(self) -> bool:
        """Whether the donor's states of a text are pooled to one vector before they are joined with the host's."""
        pools_first = get_task(self.task).needs_text_vector and self.site == ENCODER_OUTPUT
        return self.reads_text and (self.donor_tokens == "own" or pools_first)

    @property
    def first_donor_setting(self) -> str | None:
        """The name of the first setting that has no effect without a donor; None if there is none."""
        return next((name for name, value in _NEED_A_DONOR.items() if getattr(self, name) == value), None)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels in the order of their ids; default: LABEL_0, LABEL_1, ...

        Empty for a task without labels.
        """
        if not get_task(self.task).labels:
            return ()
        if self.id2label is not None:
            return tuple(self.id2label[index] for index in range(len(self.id2label)))
        return tuple(f"LABEL_{index}" for index in range(2 if self.num_labels is None else self.num_labels))

    def _check_site(self) -> None:
        if isinstance(self.site, str) and re.fullmatch(r"-?[0-9]+", self.site):
            object.__setattr__(self, "site", int(self.site))
        expected = f"{ENCODER_OUTPUT!r}, {EMBEDDINGS!r} or the number of a layer of the host, from 0"
        self.check("site", isinstance(self.site, int) or self.site in (ENCODER_OUTPUT, EMBEDDINGS), expected)

    def _check_donor(self) -> None:
        if self.donor_dtype == "float16" and self.train_donor:
            raise ConfigError(
                "donor_dtype is 'float16' and train_donor is true, but small values of the optimizer become zero in "
                "float16, and weights become NaN. Choose donor_dtype float32 or bfloat16."
            )

    def _check_reading(self) -> None:
        """Refuse settings that don't apply to the input of the donor."""
        if not self.reads_text:
            for name in ("donor_tokens", "join", "donor_pooling"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ConfigError(
                        f"{name} is {getattr(self, name)!r}, but it only applies to a donor that reads text. Leave it "
                        "out, or set donor_reads to text."
                    )
            return
        unused = {
            "residual": ("gated", "the states of such a donor are added with join gated. Set join instead"),
            "attention": ("bidirectional", "it attends as in its own model, to earlier tokens. Leave attention out"),
            "projection_init": ("matched", "there is no proj_in, and its states are normalised. Leave it out"),
            "train_donor": (True, "such a donor is always frozen. Leave train_donor out"),
        }
        for name, (value, reason) in unused.items():
            if getattr(self, name) == value:
                raise ConfigError(f"{name} is {value!r}, but the donor reads text: {reason}.")
        task = get_task(self.task)
        if self.donor_tokens == "own" and not task.pools:
            raise ConfigError(
                f"donor_tokens is 'own', but {self.task} needs the donor's state of each of the host's tokens. Extract "
                "the stack with --vocabulary HOST, and leave donor_tokens out; or choose one of these tasks: "
                f"{', '.join(n for n, t in TASKS.items() if t.pools)}."
            )
        if self.join == "concat" and not (task.head and self.site == ENCODER_OUTPUT):
            problem = f"site is {self.site!r}" if task.head else f"{self.task} has no head of ours"
            raise ConfigError(
                f"join is 'concat', which puts both vectors next to each other in front of the head, but {problem}. "
                "Choose join gated."
            )
        if self.donor_pooling is not None and not self.joins_vectors:
            raise ConfigError(
                f"donor_pooling is {self.donor_pooling!r}, but here the donor's states are joined with the host's "
                "token by token. Leave donor_pooling out."
            )
        if self.pooling == "cls" and task.pools and not task.head and not self.joins_vectors:
            raise ConfigError(
                "pooling is 'cls', but the donor's state of the first token has seen nothing of the text. Choose "
                "pooling mean or last."
            )

    def _check_task(self) -> None:
        """Refuse settings that the task doesn't use, instead of ignoring them."""
        task = get_task(self.task)
        if self.pooling == "none" and task.needs_text_vector:
            raise ConfigError(
                f"pooling is 'none', but {self.task} needs one vector per text. Choose cls, mean, mean_with_padding "
                "or last."
            )
        if self.pooling not in (None, "none") and not task.pools:
            raise ConfigError(
                f"pooling is {self.pooling!r}, but {self.task} works on single tokens and pools nothing. Leave pooling "
                "out."
            )
        if not task.labels and (self.num_labels is not None or self.id2label is not None):
            raise ConfigError(f"You passed labels, but {self.task} has none. Leave out num_labels and id2label.")
        if not task.head and self.dropout != _DROPOUT:
            raise ConfigError(
                f"dropout is {self.dropout}, but dropout is only used in the graft's own head, and {self.task} has "
                "none. Leave dropout out."
            )
        if task.causal and self.attention == "bidirectional":
            raise ConfigError(
                f"attention is 'bidirectional', but with {self.task} a token must not see later tokens. "
                "Leave attention out, or choose causal."
            )
        if self.site == EMBEDDINGS and self.attention == "causal" and self.pooling == "cls":
            raise ConfigError(
                "pooling is 'cls', but with site embeddings and attention causal, the first token sees nothing of the "
                f"text. Choose {'' if self.reads_text else 'attention bidirectional, or '}pooling last or mean."
            )

    def _check_labels(self) -> None:
        self.check("num_labels", self.num_labels is None or self.num_labels >= 1, "a whole number of at least 1")
        check_size(self.num_labels or 0, MAX_LABELS, "labels", ConfigError)
        if self.id2label is None:
            return
        expected = 'a name for each id from 0 upwards, such as {"0": "bad", "1": "good"}'
        self.check("id2label", isinstance(self.id2label, Mapping) and len(self.id2label) > 0, expected)
        check_size(len(self.id2label), MAX_LABELS, "labels", ConfigError)
        # In JSON, keys are strings.
        names = {int(key) if str(key).isdecimal() else key: name for key, name in self.id2label.items()}
        self.check("id2label", set(names) == set(range(len(self.id2label))), expected)
        self.check("id2label", all(isinstance(name, str) and name for name in names.values()), expected)
        self.check("id2label", len(set(names.values())) == len(names), expected + ", each name once")
        if self.num_labels not in (None, len(names)):
            raise ConfigError(
                f"num_labels is {self.num_labels}, but id2label names {len(names)} labels. Leave out one of the two."
            )
        object.__setattr__(self, "id2label", dict(sorted(names.items())))


# Values that would have no effect without a donor.
_NEED_A_DONOR = {
    "donor_reads": "text",
    "residual": "gated",
    "donor_init": "random",
    "train_donor": True,
    "projection_init": "matched",
    "projection_bias": True,
    "proj_out_norm": True,
}
