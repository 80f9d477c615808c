"""transformers.Trainer with the optimizer, the order of examples, the checkpoints and the events that we want."""

import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    EvalPrediction,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from layer_surgeon._io import usual_modes
from layer_surgeon._loading import check_weights
from layer_surgeon.errors import TrainingError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.metrics import Metrics
from layer_surgeon.finetune.parts import is_adapted, rates
from layer_surgeon.finetune.sharding import ShardedTrainer
from layer_surgeon.finetune.tasks.base import FinetuneTask, Outputs, TaskContext, in_order
from layer_surgeon.finetune.tokenization import NumberedDataset, TokenizedDataset
from layer_surgeon.finetune.watching import LOGGED
from layer_surgeon.graft import GraftedModel

# Points of the loss curve; reading the loss waits for the device, so it is not done at every step.
_LOGS_PER_RUN = 200
_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
# One kernel for the whole step: 30 million parameters take 13 ms on two cores, and 85 ms parameter by parameter.
_FUSED = {"fused": True}
_SCHEDULES = {
    ("constant", False): "constant",
    ("constant", True): "constant_with_warmup",
    ("linear", False): "linear",
    ("linear", True): "linear",
    ("cosine", False): "cosine",
    ("cosine", True): "cosine",
}


# What torch, safetensors and transformers raise on a checkpoint that is damaged, or wants to run code.
_UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
)


class EpochSampler(Sampler[int]):
    """The order of the examples as a function of seed and epoch alone.

    transformers draws it from the global random state, which a run that resumes inside an epoch no longer has. And its
    order by length begins with long texts and ends with short ones, fifty batches at a time, so that the last steps
    before a validation see short texts only. Here batches of texts of similar length come in random order.
    """

    def __init__(self, dataset: TokenizedDataset, batch_size: int, seed: int, *, by_length: bool) -> None:
        self._lengths, self._batch_size, self._seed, self._by_length = dataset.lengths, batch_size, seed, by_length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader when an epoch begins."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        # Multiplied, so that epoch 1 of seed 7 is not epoch 0 of seed 8.
        generator = torch.Generator().manual_seed(self._seed * 10_007 + self._epoch)
        if self._by_length:
            return iter(self._grouped(generator))
        return iter(torch.randperm(len(self), generator=generator).tolist())

    def _grouped(self, generator: torch.Generator) -> list[int]:
        size = self._batch_size
        order = get_length_grouped_indices(self._lengths, size, generator=generator)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        # The first one holds the longest text, so that a lack of memory shows at once; the last one may be smaller.
        between = torch.randperm(max(0, len(batches) - 2), generator=generator).tolist()
        places = [0, *(place + 1 for place in between), len(batches) - 1][: len(batches)]
        return [index for place in places for index in batches[place]]


class SurgeonTrainer(ShardedTrainer):
    """Trains what asks for gradients; writes checkpoints without the frozen donor; says nothing by itself."""

    def __init__(self, *, task: FinetuneTask, context: TaskContext, **arguments: Any) -> None:
        self._task, self._context, self._finetune_config = task, context, context.config
        optimizer = _OPTIMIZERS[context.config.optimizer], {"lr": context.config.learning_rate} | _FUSED
        super().__init__(
            model=context.model,
            data_collator=task.collator(context),
            compute_loss_func=task.loss_function(context.config),
            optimizer_cls_and_kwargs=optimizer,
            **arguments,
        )
        self.remove_callback(PrinterCallback)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, tuple[torch.Tensor, ...], torch.Tensor]:
        """What the task keeps of a batch, and the number of each feature: gathered over processes, put in order."""
        batch = dict(self._prepare_inputs(inputs))
        index = batch.pop("index")
        with torch.no_grad(), self.compute_loss_context_manager():
            return None, self._task.step(model, batch, self._context), index

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """One group for each learning rate, with and without weight decay; without rates of parts the trainer's own."""
        config, trained = self._finetune_config, self.model if model is None else model
        own: Any = getattr(self, "optimizer", None)
        if own is None and any(rate != config.learning_rate for _, _, rate in rates(trained, config)):
            decayed = set(self.get_decay_parameter_names(trained))
            groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
            for name, parameter, rate in rates(trained, config):
                key = rate, config.weight_decay if name in decayed else 0.0
                groups.setdefault(key, []).append(parameter)
            self.optimizer = _OPTIMIZERS[config.optimizer](
                [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()],
                **_FUSED,
            )
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "index" not in self._signature_columns:
            self._signature_columns.append("index")

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        config = self._finetune_config
        group = examples_per_step(config, self.args.world_size)
        sampler = EpochSampler(
            train_dataset or self.train_dataset, group, config.seed, by_length=config.group_by_length
        )
        self.add_callback(EpochCallback(sampler))
        return sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        if self.args.world_size > 1:
            return None
        if self._finetune_config.group_by_length:
            return SortedSampler(eval_dataset)
        return SequentialSampler(eval_dataset)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the weights that are trained, and the configuration; the data's tokenizer is kept once, elsewhere."""
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        Path(folder).mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        extra = {"include_donor": False} if isinstance(model, GraftedModel) else {}
        if is_adapted(model):
            # Else it asks the place the model came from whether its vocabulary has grown.
            extra = {"save_embedding_layers": False}
        model.save_pretrained(folder, state_dict=state_dict, **extra)
        usual_modes(Path(folder))

    def _load_callback_state(self) -> None:
        """Called when the state of a checkpoint was just read."""
        # A checkpoint names the best one by its whole path: that of before the run was moved, or any other.
        step = self.state.best_global_step
        best = None if step is None else Path(self.args.output_dir) / f"checkpoint-{step}"
        if best is not None and not best.is_dir():
            raise TrainingError(f"{best}, the checkpoint of the best epoch, is gone. Start a new run.")
        self.state.best_model_checkpoint = None if best is None else str(best)
        with _reading_checkpoint():
            super()._load_callback_state()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _reading_checkpoint():
            check_weights(resume_from_checkpoint)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading_checkpoint():
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading_checkpoint():
            super()._load_rng_state(checkpoint)

    def _named_weights(self) -> Iterable[tuple[str, Any]]:
        """All names of all weights, several of one weight too (a language head that is the embeddings)."""
        weights: Iterable[tuple[str, Any]] = self.model.named_parameters(remove_duplicate=False)
        return weights

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Of a checkpoint, nothing but the frozen donor, and second names of what is there, may be missing."""
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        buffers = {name for name, _ in self.model.named_buffers()}
        absent = set(load_result.missing_keys)
        there = {id(value) for name, value in self._named_weights() if name not in absent}
        tied = {name for name, value in self._named_weights() if id(value) in there}
        missing = absent - frozen - buffers - tied
        if missing or load_result.unexpected_keys:
            odd = sorted(missing or load_result.unexpected_keys)
            raise TrainingError(f"The checkpoint is not one of this model: {odd[0]} does not fit. Start a fresh run.")


@contextmanager
def _reading_checkpoint() -> Iterator[None]:
    """What a damaged or strange checkpoint makes transformers and torch raise becomes one error of ours."""
    try:
        yield
    except (TrainingError, torch.OutOfMemoryError):
        raise
    except _UNREADABLE as error:
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        raise TrainingError(
            f"The checkpoint can't be read ({first_line}). Delete its folder to go on from the one before, or start a "
            "new run."
        ) from error


class SortedSampler(Sampler[int]):
    """Longest first: batches of equal length, and a lack of memory shows at once."""

    def __init__(self, dataset: NumberedDataset) -> None:
        self._order = sorted(range(len(dataset)), key=lambda index: -dataset.lengths[index])

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)


class EpochCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Tells the sampler which epoch begins.

    accelerate doesn't reach it where several processes share the batches and a resumed run skips the first of them.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set it, before the first batch is drawn."""
        self._sampler.set_epoch(int(state.epoch or 0))


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Asks for a checkpoint after every so many steps.

    The trainer's own way to save by steps wants the validation by steps too, for it to know the best one.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for one, except where an epoch or the run ends.

        There the epoch's own comes, after the validation; one before it would resume behind the validation.
        """
        ends = state.epoch == int(state.epoch) or state.global_step >= state.max_steps
        if state.global_step % self._steps == 0 and not ends:
            control.should_save = True


def examples_per_step(config: FinetuneConfig, num_processes: int = 1) -> int:
    """Examples of an optimizer step, of all its forward passes and all processes."""
    return config.batch_size * config.gradient_accumulation_steps * num_processes


def count_steps(config: FinetuneConfig, num_examples: int, num_processes: int = 1) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the whole run."""
    per_epoch = math.ceil(num_examples / examples_per_step(config, num_processes))
    return per_epoch, config.max_steps or math.ceil(config.num_epochs * per_epoch)


def training_arguments(
    config: FinetuneConfig, checkpoints: Path, device: torch.device, num_examples: int, num_processes: int = 1
) -> TrainingArguments:
    """Our settings in transformers' words.

    Args:
        config: The settings.
        checkpoints: The folder in which checkpoint folders are written.
        device: Where to train.
        num_examples: Training examples, for the number of steps.
        num_processes: Processes that each take a batch at every step.
    """
    _, total = count_steps(config, num_examples, num_processes)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=config.num_epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.evaluation_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type=_SCHEDULES[config.schedule, config.warmup_ratio > 0],
        warmup_steps=round(config.warmup_ratio * total),
        max_grad_norm=config.max_grad_norm,
        label_smoothing_factor=config.label_smoothing,
        seed=config.seed,
        full_determinism=config.deterministic,
        use_cpu=device.type == "cpu",
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        torch_compile=config.compile,
        dataloader_pin_memory=device.type == "cuda",
        eval_strategy="epoch",
        save_strategy="epoch",
        # The last one, to be resumed, and the best one, to be loaded at the end. (A limit of 1 would keep both too, but
        # remove the last one before the run's folder is written.)
        save_total_limit=2,
        # So that early stopping goes on counting where it was.
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=True,
        metric_for_best_model=LOGGED.get(str(config.select_by), config.select_by),
        greater_is_better=config.select_by != "loss",
        logging_strategy="steps",
        logging_steps=max(1, total // _LOGS_PER_RUN),
        # Without this a loss that is no number is replaced in the log by the mean of those before.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        # Of a stream every process reads all and takes its part of each batch: batches that one process hands out would
        # all have to be padded alike.
        accelerator_config={"dispatch_batches": False},
        # Trackers are called by `Trackers`, which outlives them.
        report_to="none",
        label_names=["labels"],
        remove_unused_columns=True,
    )
    if device.type == "cuda":
        # One GPU: several in one process would mean DataParallel, which is slower than one and changes the batch size.
        arguments._n_gpu = 1
    return arguments


def predict_together(trainer: SurgeonTrainer, dataset: NumberedDataset) -> Outputs:
    """What the model says of a whole set, in the set's order, every process doing a part of it."""
    trainer.compute_metrics = None
    found = trainer.predict(dataset)
    return in_order(tuple(found.predictions), found.label_ids)


def compute_metrics(prediction: EvalPrediction, measure: Callable[[Outputs], Metrics]) -> dict[str, float]:
    """The numbers that a validation during training yields.

    Args:
        prediction: Outputs of all features and, as labels, the features' numbers.
        measure: Measures outputs that are in order.
    """
    scores = measure(in_order(tuple(prediction.predictions), prediction.label_ids)).scores
    return {LOGGED.get(name, name): value for name, value in scores.items()}
