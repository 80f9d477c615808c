"""The settings of a fine-tuning run: the paper's defaults, checked where they are made."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from layer_surgeon.errors import ConfigError

Device = Literal["auto", "cpu", "cuda", "mps"]
Optimizer = Literal["adam", "adamw"]
HostTraining = Literal["full", "frozen", "lora"]
Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["constant", "linear", "cosine"]
Selection = Literal["accuracy", "macro_f1", "f1", "exact_match", "bleu", "rouge_l", "meteor", "loss"]
TaskName = Literal["text-classification", "token-classification", "question-answering", "seq2seq", "causal-lm"]

EXTRA_METRICS = ("bert_score", "bart_score")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")

COLUMN_SETTINGS = ("text_column", "text_pair_column", "label_column")
# Those of questions and answers, and of written text.
OTHER_TASKS_SETTINGS = (
    "doc_stride",
    "max_answer_length",
    "unanswerable",
    "max_target_length",
    "num_beams",
    "source_prefix",
)
# What a model was trained with and is to be used with.
MODEL_SETTINGS = ("task", "max_length", *OTHER_TASKS_SETTINGS)

_T = TypeVar("_T")


def _option(default: _T, text: str) -> _T:
    """A field with the one sentence that documents it; the command line shows the same sentence."""
    value: _T = field(default=default, metadata={"help": text})
    return value


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of one fine-tuning run. The defaults are the paper's (section 4 and its published code).

    Raises:
        ConfigError: A value is of the wrong kind or out of range.
    """

    task: TaskName | None = _option(
        None,
        "What is learned; default: what the graft was made for, else what the data set is for, else classification.",
    )
    # Training
    num_epochs: float = _option(3.0, "Passes over the training data.")
    max_steps: int | None = _option(None, "Optimizer steps; takes the place of the number of epochs.")
    batch_size: int = _option(32, "Examples per forward pass.")
    gradient_accumulation_steps: int = _option(1, "Forward passes per optimizer step.")
    learning_rate: float = _option(5e-5, "Learning rate of everything that is trained.")
    host_learning_rate: float | None = _option(None, "Learning rate of the host; default: learning_rate.")
    projection_learning_rate: float | None = _option(None, "That of the two projections; default: learning_rate.")
    head_learning_rate: float | None = _option(None, "That of the head; default: learning_rate.")
    train_host: HostTraining = _option(
        "full", "full: the whole host is trained; frozen: it stays as it is; lora: by adapters, merged at the end."
    )
    lora_rank: int = _option(8, "Rank of the adapters of train_host lora (the paper: 8).")
    lora_alpha: float = _option(16.0, "Their scale, divided by the rank (the paper: 16).")
    lora_dropout: float = _option(0.1, "Dropout in front of the adapters (the paper: 0.1).")
    optimizer: Optimizer = _option("adam", "Optimizer: adam or adamw.")
    weight_decay: float = _option(0.0, "Weight decay (not on biases and norms).")
    schedule: Schedule = _option("constant", "How the learning rate goes on after the warm-up.")
    warmup_ratio: float = _option(0.0, "Share of the steps during which the learning rate rises from 0.")
    max_grad_norm: float = _option(5.0, "Gradients are clipped to this norm; 0 turns clipping off.")
    label_smoothing: float = _option(0.05, "Label smoothing of the training loss.")
    select_by: Selection | None = _option(
        None, "Validation metric by which the best epoch is kept; default: accuracy, F1, BLEU or loss, by task."
    )
    early_stopping_patience: int | None = _option(None, "Stop after this many epochs without a better one.")
    checkpoint_steps: int | None = _option(
        None, "Write a checkpoint after so many steps too, beside that of each epoch, so that a stop loses less."
    )
    seed: int = _option(
        2023, "Seed of the hold-out, the order of the data, dropout, and a last layer that starts anew."
    )
    # Data
    max_length: int = _option(100, "Longest input in tokens; longer ones are cut.")
    validation_fraction: float = _option(0.2, "Share of the training data held out where there is no validation data.")
    train_fraction: float = _option(1.0, "Share of the training data that is used (stratified).")
    max_train_samples: int | None = _option(None, "Largest number of training examples that are used (stratified).")
    max_eval_samples: int | None = _option(None, "Largest number of validation and of test examples (stratified).")
    streaming: bool = _option(
        False, "Read the training data row by row, for data that doesn't fit into memory; see docs/data.md."
    )
    shuffle_buffer: int = _option(10_000, "Rows of a stream that are in memory, and shuffled, at a time.")
    eval_steps: int | None = _option(
        None, "Steps of a streamed run from one validation to the next; default: a tenth of all."
    )
    text_column: str | None = _option(None, "Column of the text; guessed when not given.")
    text_pair_column: str | None = _option(None, "Column of the second text of a pair; guessed when not given.")
    label_column: str | None = _option(None, "Column of the label; guessed when not given.")
    # Questions and answers
    doc_stride: int | None = _option(
        None, "Tokens that two neighbouring pieces of a long text share (questions); default: a quarter of max_length."
    )
    max_answer_length: int = _option(30, "Longest answer in tokens (questions).")
    unanswerable: bool | None = _option(
        None, "Whether a question may have no answer; default: whether one in the training data has none."
    )
    # Written text
    max_target_length: int = _option(100, "Longest text that is learned to write, or written, in tokens.")
    num_beams: int = _option(5, "Beams of the search when text is written (the paper's code: 5); 1: no search.")
    source_prefix: str | None = _option(
        None, "Put before every source text, such as 'translate English to German: ' for T5."
    )
    extra_metrics: str | None = _option(
        None,
        "More metrics of written text, when training is done: bert_score, bart_score, or both with a comma; "
        "bert_score=MODEL names a repo id or folder of another model than the usual.",
    )
    # Machine
    device: Device = _option("auto", "Where to train: auto takes CUDA, else MPS, else the CPU.")
    precision: Precision = _option("fp32", "fp32, or mixed precision in bf16 or fp16.")
    gradient_checkpointing: bool = _option(
        False, "Compute activations again in the backward pass: less memory, about a third more time."
    )
    compile: bool = _option(False, "Compile the model with torch.compile; the first steps take long.")
    eval_batch_size: int | None = _option(None, "Examples per forward pass in evaluation; default: twice the batch.")
    group_by_length: bool = _option(True, "Put texts of similar length into a batch, so that little is padded.")
    deterministic: bool = _option(False, "Ask GPU kernels for exact repetition too (slower; the CPU repeats anyway).")
    report_to: str | None = _option(
        None, "Show the run in tensorboard, wandb, mlflow or trackio too; several with a comma."
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "report_to", _joined(self.report_to))
        _check_types(self)
        for name in ("num_epochs", "lora_alpha", *_RATES):
            value = getattr(self, name)
            _check(self, name, value is None or value > 0, "a number above 0")
        for name, (kind, optional) in _kinds().items():
            if kind is int and name != "seed":
                value, rest = getattr(self, name), ", or nothing" if optional else ""
                _check(self, name, value is None or value >= 1, f"a whole number of at least 1{rest}")
        asked = self.wanted_extra_metrics
        known = set(asked) <= set(EXTRA_METRICS) and "" not in asked.values()
        _check(self, "extra_metrics", known, f"some of {', '.join(EXTRA_METRICS)}, with commas")
        _check(self, "report_to", set(self.trackers) <= set(TRACKERS), f"some of {', '.join(TRACKERS)}, with commas")
        for name in ("weight_decay", "max_grad_norm"):
            _check(self, name, getattr(self, name) >= 0, "a number of at least 0")
        for name in ("warmup_ratio", "label_smoothing", "lora_dropout"):
            _check(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        _check(self, "validation_fraction", 0 < self.validation_fraction < 1, "between 0 and 1, both excluded")
        _check(self, "train_fraction", 0 < self.train_fraction <= 1, "above 0 and at most 1")
        _check(self, "eval_steps", self.eval_steps is None or self.streaming, "left out without streaming")
        if self.streaming and self.train_fraction != 1:
            raise ConfigError(
                f"train_fraction is {self.train_fraction:g}; of a stream a share can't be chosen by classes without "
                "reading all of it. Give max_train_samples: the first so many rows."
            )
        _check(self, "seed", 0 <= self.seed < 2**32, "a whole number from 0 to 4294967295")

    @classmethod
    def from_settings(cls, config: "FinetuneConfig | None" = None, settings: Mapping[str, Any] | None = None) -> Self:
        """`config` (default: the paper's) with `settings` laid over it.

        Raises:
            ConfigError: A setting has an unknown name, or a value that can't be used.
        """
        settings = settings or {}
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ConfigError(
                f"There is no setting {unknown[0]!r} for fine-tuning. There are: {', '.join(sorted(known))}."
            )
        base = {} if config is None else {name: getattr(config, name) for name in known}
        return cls(**(base | dict(settings)))

    @property
    def wanted_extra_metrics(self) -> dict[str, str | None]:
        """The names in `extra_metrics`, each with the model that it shall use, or None for its usual one."""
        entries = [entry.strip().partition("=") for entry in (self.extra_metrics or "").split(",") if entry.strip()]
        return {name.strip(): model.strip() if equals else None for name, equals, model in entries}

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `report_to`, one by one."""
        return tuple(self.report_to.split(",")) if self.report_to else ()

    @property
    def evaluation_batch_size(self) -> int:
        """Examples per forward pass in evaluation."""
        return self.eval_batch_size or 2 * self.batch_size


def _joined(names: Any) -> Any:
    """Names of a list, or with commas, in one form; of anything else the value, for the check of types to refuse."""
    if isinstance(names, str):
        names = names.split(",")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return names
    known = dict.fromkeys(name.strip() for name in names if name.strip())
    return None if tuple(known) in ((), ("none",)) else ",".join(known)


_RATES = ("learning_rate", "host_learning_rate", "projection_learning_rate", "head_learning_rate")


@functools.cache
def _kinds() -> Mapping[str, tuple[Any, bool]]:
    """Of each field: what it takes, and whether it may be left open (None)."""
    kinds = {}
    for name, hint in get_type_hints(FinetuneConfig).items():
        alternatives = (hint,) if get_origin(hint) in (None, Literal) else get_args(hint)
        kinds[name] = next(kind for kind in alternatives if kind is not type(None)), type(None) in alternatives
    return kinds


def _check_types(config: FinetuneConfig) -> None:
    for name, (kind, optional) in _kinds().items():
        value = getattr(config, name)
        good, expected = _fits(value, kind)
        if name.endswith("_column"):
            expected = "a column name"
        _check(config, name, good or (optional and value is None), expected)


def _fits(value: Any, kind: Any) -> tuple[bool, str]:
    """Whether a value is of a kind, and what the kind is called."""
    if get_origin(kind) is Literal:
        return value in get_args(kind), f"one of {', '.join(get_args(kind))}"
    if kind is str:
        return isinstance(value, str) and bool(value), "a text that is not empty"
    if kind is bool:
        return isinstance(value, bool), "true or false"
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind is int:
        return number, "a whole number"
    return number and math.isfinite(value), "a number"


def _check(config: FinetuneConfig, name: str, good: bool, expected: str) -> None:
    if not good:
        raise ConfigError(f"{name} is {getattr(config, name)!r}; it must be {expected}.")
