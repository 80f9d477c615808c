"""Settings of a fine-tuning run. The defaults are the paper's; values are checked on creation."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from layer_surgeon._limits import MAX_SEED
from layer_surgeon.errors import ConfigError
from layer_surgeon.tasks import DEFAULT_TASK, finetuned_tasks, selection_names

Device = Literal["auto", "cpu", "cuda", "mps"]
Optimizer = Literal["adam", "adamw"]
HostTraining = Literal["full", "frozen", "lora"]
Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["constant", "linear", "cosine"]

EXTRA_METRICS = ("bert_score", "bart_score")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")

COLUMN_SETTINGS = ("text_column", "text_pair_column", "label_column")
# Settings of question answering and of text generation.
OTHER_TASKS_SETTINGS = (
    "doc_stride",
    "max_answer_length",
    "unanswerable",
    "max_target_length",
    "num_beams",
    "source_prefix",
)
# Settings that a trained model keeps: prediction and evaluation use the values from training.
MODEL_SETTINGS = ("task", "max_length", *OTHER_TASKS_SETTINGS)

_T = TypeVar("_T")


def _option(default: _T, help_text: str, choices: Callable[[], tuple[str, ...]] | None = None) -> _T:
    """Make a field with its help text and choices, which the command line and docs/configuration.md show."""
    value: _T = field(default=default, metadata={"help": help_text, "choices": choices})
    return value


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of one fine-tuning run. The defaults are the paper's (section 4 and its published code).

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    task: str | None = _option(
        None,
        f"The task. Default: the graft's task, else the data set's, else the stored model's, else {DEFAULT_TASK}.",
        finetuned_tasks,
    )
    # Training
    num_epochs: float = _option(3.0, "Number of passes over the training data.")
    max_steps: int | None = _option(None, "Number of optimizer steps; overrides num_epochs.")
    batch_size: int = _option(32, "Examples per forward pass.")
    gradient_accumulation_steps: int = _option(1, "Forward passes per optimizer step.")
    learning_rate: float = _option(5e-5, "Learning rate.")
    host_learning_rate: float | None = _option(None, "Learning rate of the host. Default: learning_rate.")
    projection_learning_rate: float | None = _option(None, "Learning rate of the projections. Default: learning_rate.")
    head_learning_rate: float | None = _option(None, "Learning rate of the head. Default: learning_rate.")
    train_host: HostTraining = _option(
        "full", "full: train the whole host; frozen: keep the host fixed; lora: train LoRA adapters, merged at the end."
    )
    lora_rank: int = _option(8, "Rank of the LoRA adapters (the paper: 8).")
    lora_alpha: float = _option(16.0, "Scale of the LoRA adapters, divided by lora_rank (the paper: 16).")
    lora_dropout: float = _option(0.1, "Dropout on the input of the LoRA adapters (the paper: 0.1).")
    optimizer: Optimizer = _option("adam", "Optimizer: adam or adamw.")
    weight_decay: float = _option(0.0, "Weight decay. Biases and norms are not decayed.")
    schedule: Schedule = _option("constant", "Learning rate schedule after the warm-up.")
    warmup_ratio: float = _option(0.0, "Fraction of the steps used for a linear warm-up of the learning rate.")
    max_grad_norm: float = _option(5.0, "Clip gradients to this norm; 0 disables clipping.")
    label_smoothing: float = _option(0.05, "Label smoothing in the training loss.")
    select_by: str | None = _option(
        None,
        "Validation metric that selects the best epoch. Default, by task: accuracy, F1, BLEU or loss.",
        selection_names,
    )
    early_stopping_patience: int | None = _option(None, "Stop after this many epochs without improvement.")
    checkpoint_steps: int | None = _option(
        None, "Write a checkpoint every so many steps, in addition to one per epoch, to lose less when the run stops."
    )
    seed: int = _option(
        2023, "Seed for the held-out rows, the data order, dropout, and the last layer if it is re-initialised."
    )
    # Data
    max_length: int = _option(100, "Maximum length of the input in tokens; longer texts are truncated.")
    validation_fraction: float = _option(
        0.2, "Fraction of the training data to hold out for validation if the data set has no validation split."
    )
    train_fraction: float = _option(1.0, "Fraction of the training data to use (stratified).")
    max_train_samples: int | None = _option(None, "Maximum number of training examples (stratified).")
    max_eval_samples: int | None = _option(
        None, "Maximum number of validation examples, and of test examples (stratified)."
    )
    streaming: bool = _option(
        False,
        "Read the training data row by row, for data that does not fit into memory. Limits then take the first "
        "examples; see docs/data.md.",
    )
    shuffle_buffer: int = _option(10_000, "Number of streamed rows to hold in memory and shuffle at a time.")
    eval_steps: int | None = _option(
        None, "Steps between two validations of a streamed run. Default: a tenth of all steps."
    )
    text_column: str | None = _option(None, "Column with the text. Default: guessed.")
    text_pair_column: str | None = _option(None, "Column with the second text of a pair. Default: guessed.")
    label_column: str | None = _option(None, "Column with the label. Default: guessed.")
    # Question answering
    doc_stride: int | None = _option(
        None, "Question answering: overlap in tokens of two consecutive windows. Default: a quarter of max_length."
    )
    max_answer_length: int = _option(30, "Question answering: maximum length of an answer in tokens.")
    unanswerable: bool | None = _option(
        None,
        "Question answering: allow the model to give no answer. Default: true if any training question has no answer "
        "(in a stream: any of the first 1,000).",
    )
    # Text generation
    max_target_length: int = _option(100, "Maximum length of target texts and of generated texts, in tokens.")
    num_beams: int = _option(5, "Number of beams when generating text (the paper's code: 5); 1 disables beam search.")
    source_prefix: str | None = _option(
        None, "Prefix for every source text, such as 'translate English to German: ' for T5."
    )
    extra_metrics: str | None = _option(
        None,
        "Comma-separated metrics to compute on generated text after training: bert_score, bart_score. "
        "bert_score=MODEL uses another model, given as a repo id or a folder.",
    )
    # Machine
    device: Device = _option("auto", "Device to train on. auto: CUDA if available, else MPS, else the CPU.")
    precision: Precision = _option("fp32", "fp32, or mixed precision with bf16 or fp16.")
    gradient_checkpointing: bool = _option(
        False, "Recompute activations in the backward pass: less memory, about a third more time."
    )
    compile: bool = _option(False, "Compile the model with torch.compile; the first steps are slow.")
    eval_batch_size: int | None = _option(
        None, "Examples per forward pass in evaluation. Default: twice the batch size."
    )
    cache_states: bool = _option(
        True,
        "For a graft whose donor reads text: compute the donor's states of each text once, and keep them in the "
        "workspace for all epochs and runs. false: compute them in every epoch, with the same results.",
    )
    group_by_length: bool = _option(True, "Batch texts of similar length together, to reduce padding.")
    deterministic: bool = _option(
        False, "Use deterministic GPU kernels (slower). CPU runs are reproducible without this setting."
    )
    report_to: str | None = _option(
        None, "Comma-separated trackers to report the run to: tensorboard, wandb, mlflow, trackio."
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "report_to", _joined(self.report_to))
        _check_types(self)
        for name in ("num_epochs", "lora_alpha", *RATES):
            value = getattr(self, name)
            _check(self, name, value is None or value > 0, "a positive number")
        for name, (kind, optional) in _field_types().items():
            if kind is int and name != "seed":
                value, or_none = getattr(self, name), ", or None" if optional else ""
                _check(self, name, value is None or value >= 1, f"a whole number of at least 1{or_none}")
        metrics = self.wanted_extra_metrics
        valid = set(metrics) <= set(EXTRA_METRICS) and "" not in metrics.values()
        _check(self, "extra_metrics", valid, f"a comma-separated list of {', '.join(EXTRA_METRICS)}")
        trackers_known = set(self.trackers) <= set(TRACKERS)
        _check(self, "report_to", trackers_known, f"a comma-separated list of {', '.join(TRACKERS)}")
        for name in ("weight_decay", "max_grad_norm"):
            _check(self, name, getattr(self, name) >= 0, "a number of at least 0")
        for name in ("warmup_ratio", "label_smoothing", "lora_dropout"):
            _check(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        _check(self, "validation_fraction", 0 < self.validation_fraction < 1, "above 0 and below 1")
        _check(self, "train_fraction", 0 < self.train_fraction <= 1, "above 0 and at most 1")
        _check(self, "eval_steps", self.eval_steps is None or self.streaming, "None unless streaming is on")
        if self.streaming and self.train_fraction != 1:
            raise ConfigError(
                f"train_fraction is {self.train_fraction:g}, which streaming does not support: a stratified fraction "
                "needs all rows. Use max_train_samples to train on the first rows."
            )
        _check(self, "seed", 0 <= self.seed <= MAX_SEED, f"a whole number from 0 to {MAX_SEED}")

    @classmethod
    def from_settings(cls, config: "FinetuneConfig | None" = None, settings: Mapping[str, Any] | None = None) -> Self:
        """Copy `config` (default: the paper's settings), with `settings` overriding its values.

        Raises:
            ConfigError: A setting has an unknown name or an invalid value.
        """
        settings = settings or {}
        known_names = {setting.name for setting in fields(cls)}
        unknown = sorted(set(settings) - known_names)
        if unknown:
            raise ConfigError(
                f"There is no fine-tuning setting {unknown[0]!r}. The settings are: {', '.join(sorted(known_names))}."
            )
        base = {} if config is None else {name: getattr(config, name) for name in known_names}
        return cls(**(base | dict(settings)))

    @property
    def wanted_extra_metrics(self) -> dict[str, str | None]:
        """The metrics in `extra_metrics`, each with the model to use, or None for its default model."""
        items = [item.strip().partition("=") for item in (self.extra_metrics or "").split(",") if item.strip()]
        return {name.strip(): model.strip() if equals else None for name, equals, model in items}

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers named in `report_to`."""
        return tuple(self.report_to.split(",")) if self.report_to else ()

    @property
    def evaluation_batch_size(self) -> int:
        """Examples per forward pass in evaluation."""
        return self.eval_batch_size or 2 * self.batch_size


def _joined(names: Any) -> Any:
    """Join a list of names with commas; `none` and an empty list become None.

    Any other type is returned unchanged, for `_check_types` to reject.
    """
    if isinstance(names, str):
        names = names.split(",")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return names
    unique_names = dict.fromkeys(name.strip() for name in names if name.strip())
    return None if tuple(unique_names) in ((), ("none",)) else ",".join(unique_names)


RATES = ("learning_rate", "host_learning_rate", "projection_learning_rate", "head_learning_rate")


@functools.cache
def _field_types() -> Mapping[str, tuple[Any, bool]]:
    """Map each field to its type and whether it may be None."""
    kinds = {}
    for name, hint in get_type_hints(FinetuneConfig).items():
        alternatives = (hint,) if get_origin(hint) in (None, Literal) else get_args(hint)
        kinds[name] = next(kind for kind in alternatives if kind is not type(None)), type(None) in alternatives
    return kinds


def _check_types(config: FinetuneConfig) -> None:
    choices = {setting.name: setting.metadata["choices"] for setting in fields(config)}
    for name, (kind, optional) in _field_types().items():
        value = getattr(config, name)
        valid, expected = _fits(value, kind)
        if value is not None and choices[name] is not None:
            allowed = choices[name]()
            valid, expected = value in allowed, f"one of {', '.join(allowed)}"
        if name.endswith("_column"):
            expected = "a column name"
        _check(config, name, valid or (optional and value is None), expected)


def _fits(value: Any, kind: Any) -> tuple[bool, str]:
    """Whether a value has a type, and what to call that type in a message."""
    if get_origin(kind) is Literal:
        return value in get_args(kind), f"one of {', '.join(get_args(kind))}"
    if kind is str:
        return isinstance(value, str) and bool(value), "a non-empty string"
    if kind is bool:
        return isinstance(value, bool), "true or false"
    is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind is int:
        return is_number, "a whole number"
    return is_number and math.isfinite(value), "a number"


def _check(config: FinetuneConfig, name: str, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigError(f"{name} is {getattr(config, name)!r}; it must be {expected}.")
