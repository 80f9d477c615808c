"""Settings of a fine-tuning run. The defaults are the paper's; values are checked on creation."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from layer_surgeon._limits import MAX_SEED
from layer_surgeon._settings import Settings, check_types, option, type_hints
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


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Settings):
    """Settings of one fine-tuning run. The defaults are the paper's (section 4 and its published code).

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    task: str | None = option(
        None,
        f"The task. Default: the graft's task, else the data set's, else the stored model's, else {DEFAULT_TASK}.",
        finetuned_tasks,
    )
    # Training
    num_epochs: float = option(3.0, "Number of passes over the training data.")
    max_steps: int | None = option(None, "Number of optimizer steps; overrides num_epochs.")
    batch_size: int = option(32, "Examples per forward pass.")
    gradient_accumulation_steps: int = option(1, "Forward passes per optimizer step.")
    learning_rate: float = option(5e-5, "Learning rate.")
    host_learning_rate: float | None = option(None, "Learning rate of the host. Default: learning_rate.")
    projection_learning_rate: float | None = option(None, "Learning rate of the projections. Default: learning_rate.")
    head_learning_rate: float | None = option(None, "Learning rate of the head. Default: learning_rate.")
    train_host: HostTraining = option(
        "full", "full: train the whole host; frozen: keep the host fixed; lora: train LoRA adapters, merged at the end."
    )
    lora_rank: int = option(8, "Rank of the LoRA adapters (the paper: 8).")
    lora_alpha: float = option(16.0, "Scale of the LoRA adapters, divided by lora_rank (the paper: 16).")
    lora_dropout: float = option(0.1, "Dropout on the input of the LoRA adapters (the paper: 0.1).")
    optimizer: Optimizer = option("adam", "Optimizer: adam or adamw.")
    weight_decay: float = option(0.0, "Weight decay. Biases and norms are not decayed.")
    schedule: Schedule = option("constant", "Learning rate schedule after the warm-up.")
    warmup_ratio: float = option(0.0, "Fraction of the steps used for a linear warm-up of the learning rate.")
    max_grad_norm: float = option(5.0, "Clip gradients to this norm; 0 disables clipping.")
    label_smoothing: float = option(0.05, "Label smoothing in the training loss.")
    select_by: str | None = option(
        None,
        "Validation metric that selects the best epoch. Default, by task: accuracy, F1, BLEU or loss.",
        selection_names,
    )
    early_stopping_patience: int | None = option(None, "Stop after this many epochs without improvement.")
    checkpoint_steps: int | None = option(
        None, "Write a checkpoint every so many steps, in addition to one per epoch, to lose less when the run stops."
    )
    seed: int = option(
        2023, "Seed for the held-out rows, the data order, dropout, and the last layer if it is re-initialised."
    )
    # Data
    max_length: int = option(100, "Maximum length of the input in tokens; longer texts are truncated.")
    validation_fraction: float = option(
        0.2, "Fraction of the training data to hold out for validation if the data set has no validation split."
    )
    train_fraction: float = option(1.0, "Fraction of the training data to use (stratified).")
    max_train_samples: int | None = option(None, "Maximum number of training examples (stratified).")
    max_eval_samples: int | None = option(
        None, "Maximum number of validation examples, and of test examples (stratified)."
    )
    streaming: bool = option(
        False,
        "Read the training data row by row, for data that does not fit into memory. Limits then take the first "
        "examples; see docs/data.md.",
    )
    shuffle_buffer: int = option(10_000, "Number of streamed rows to hold in memory and shuffle at a time.")
    eval_steps: int | None = option(
        None, "Steps between two validations of a streamed run. Default: a tenth of all steps."
    )
    text_column: str | None = option(None, "Column with the text. Default: guessed.")
    text_pair_column: str | None = option(None, "Column with the second text of a pair. Default: guessed.")
    label_column: str | None = option(None, "Column with the label. Default: guessed.")
    # Question answering
    doc_stride: int | None = option(
        None, "Question answering: overlap in tokens of two consecutive windows. Default: a quarter of max_length."
    )
    max_answer_length: int = option(30, "Question answering: maximum length of an answer in tokens.")
    unanswerable: bool | None = option(
        None,
        "Question answering: allow the model to give no answer. Default: true if any training question has no answer "
        "(in a stream: any of the first 1,000).",
    )
    # Text generation
    max_target_length: int = option(100, "Maximum length of target texts and of generated texts, in tokens.")
    num_beams: int = option(5, "Number of beams when generating text (the paper's code: 5); 1 disables beam search.")
    source_prefix: str | None = option(
        None, "Prefix for every source text, such as 'translate English to German: ' for T5."
    )
    extra_metrics: str | None = option(
        None,
        "Comma-separated metrics to compute on generated text after training: bert_score, bart_score. "
        "bert_score=MODEL uses another model, given as a repo id or a folder.",
    )
    # Machine
    device: Device = option("auto", "Device to train on. auto: CUDA if available, else MPS, else the CPU.")
    precision: Precision = option("fp32", "fp32, or mixed precision with bf16 or fp16.")
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, about a third more time."
    )
    compile: bool = option(False, "Compile the model with torch.compile; the first steps are slow.")
    eval_batch_size: int | None = option(
        None, "Examples per forward pass in evaluation. Default: twice the batch size."
    )
    cache_states: bool = option(
        True,
        "For a graft whose donor reads text: compute the donor's states of each text once, and keep them in the "
        "workspace for all epochs and runs. false: compute them in every epoch, with the same results.",
    )
    group_by_length: bool = option(True, "Batch texts of similar length together, to reduce padding.")
    deterministic: bool = option(
        False, "Use deterministic GPU kernels (slower). CPU runs are reproducible without this setting."
    )
    report_to: str | None = option(
        None, "Comma-separated trackers to report the run to: tensorboard, wandb, mlflow, trackio."
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "report_to", _joined(self.report_to))
        check_types(self)
        for name in ("num_epochs", "lora_alpha", *RATES):
            value = getattr(self, name)
            self.check(name, value is None or value > 0, "a positive number")
        for name, hint in type_hints(type(self)).items():
            if int in (hint, *get_args(hint)) and name != "seed":
                value = getattr(self, name)
                self.check(name, value is None or value >= 1, "a whole number of at least 1")
        metrics = self.wanted_extra_metrics
        valid = set(metrics) <= set(EXTRA_METRICS) and "" not in metrics.values()
        self.check("extra_metrics", valid, f"a comma-separated list of {', '.join(EXTRA_METRICS)}")
        trackers_known = set(self.trackers) <= set(TRACKERS)
        self.check("report_to", trackers_known, f"a comma-separated list of {', '.join(TRACKERS)}")
        for name in ("weight_decay", "max_grad_norm"):
            self.check(name, getattr(self, name) >= 0, "a number of at least 0")
        for name in ("warmup_ratio", "label_smoothing", "lora_dropout"):
            self.check(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self.check("validation_fraction", 0 < self.validation_fraction < 1, "above 0 and below 1")
        self.check("train_fraction", 0 < self.train_fraction <= 1, "above 0 and at most 1")
        self.check("eval_steps", self.eval_steps is None or self.streaming, "None unless streaming is on")
        if self.streaming and self.train_fraction != 1:
            raise ConfigError(
                f"train_fraction is {self.train_fraction:g}, which streaming does not support: a stratified fraction "
                "needs all rows. Use max_train_samples to train on the first rows."
            )
        self.check("seed", 0 <= self.seed <= MAX_SEED, f"a whole number from 0 to {MAX_SEED}")

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

    Any other type is returned unchanged, for `check_types` to reject.
    """
    if isinstance(names, str):
        names = names.split(",")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return names
    unique_names = dict.fromkeys(name.strip() for name in names if name.strip())
    return None if tuple(unique_names) in ((), ("none",)) else ",".join(unique_names)


RATES = ("learning_rate", "host_learning_rate", "projection_learning_rate", "head_learning_rate")
