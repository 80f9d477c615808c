"""A `transformers.Trainer` with our optimizer, example order and checkpoints."""

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
from transformers.trainer import TRAINER_STATE_NAME

from layer_surgeon._io import usual_modes
from layer_surgeon._loading import check_indexes
from layer_surgeon.errors import TrainingError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.donor_states import with_states
from layer_surgeon.finetune.metrics import Metrics
from layer_surgeon.finetune.parts import is_adapted, rates
from layer_surgeon.finetune.sampling import EpochSampler, SortedSampler, count_steps, examples_per_step
from layer_surgeon.finetune.sharding import ShardedTrainer
from layer_surgeon.finetune.tasks.base import FinetuneTask, Outputs, TaskContext, in_order
from layer_surgeon.finetune.tokenization import NumberedDataset
from layer_surgeon.finetune.watching import LOGGED
from layer_surgeon.graft import GraftedModel
from layer_surgeon.tasks import get_task

# Number of points on the loss curve. Reading the loss waits for the device, so it is not logged at every step.
_LOGS_PER_RUN = 200
_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
# One fused kernel per step: for 30 million parameters, 13 ms on two cores instead of 85 ms.
_FUSED = {"fused": True}
_SCHEDULES = {
    ("constant", False): "constant",
    ("constant", True): "constant_with_warmup",
    ("linear", False): "linear",
    ("linear", True): "linear",
    ("cosine", False): "cosine",
    ("cosine", True): "cosine",
}

# Errors of torch, safetensors and transformers for a checkpoint that is damaged or would run code.
_CHECKPOINT_ERRORS = (
    pickle.UnpicklingError,
    SafetensorError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
)


class SurgeonTrainer(ShardedTrainer):
    """Trains all parameters that require gradients, saves checkpoints without the frozen donor, and prints nothing."""

    def __init__(self, *, task: FinetuneTask, context: TaskContext, **arguments: Any) -> None:
        self._task, self._context, self._finetune_config = task, context, context.config
        optimizer = _OPTIMIZERS[context.config.optimizer], {"lr": context.config.learning_rate} | _FUSED
        super().__init__(
            model=context.model,
            data_collator=with_states(task.collator(context)),
            compute_loss_func=task.loss_function(context.config),
            optimizer_cls_and_kwargs=optimizer,
            **arguments,
        )
        self.remove_callback(PrinterCallback)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, tuple[torch.Tensor, ...], torch.Tensor]:
        """Return the task's outputs for a batch, and the feature numbers that put gathered outputs in order."""
        batch = dict(self._prepare_inputs(inputs))
        index = batch.pop("index")
        with torch.no_grad(), self.compute_loss_context_manager():
            return None, self._task.step(model, batch, self._context), index

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create parameter groups by learning rate and weight decay; without per-part rates, use the trainer's own."""
        config, trained_model = self._finetune_config, self.model if model is None else model
        existing: Any = getattr(self, "optimizer", None)
        if existing is None and any(rate != config.learning_rate for _, _, rate in rates(trained_model, config)):
            decayed = set(self.get_decay_parameter_names(trained_model))
            groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
            for name, parameter, rate in rates(trained_model, config):
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
        num_examples = examples_per_step(config, self.args.world_size)
        sampler = EpochSampler(
            train_dataset or self.train_dataset, num_examples, config.seed, by_length=config.group_by_length
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
        """Save the trained weights and the config. The tokenizer is saved only once, in the finished run."""
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        Path(folder).mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        options = {"include_donor": False} if isinstance(model, GraftedModel) else {}
        if is_adapted(model):
            # By default peft looks up the original model to see whether the vocabulary has grown.
            options = {"save_embedding_layers": False}
        model.save_pretrained(folder, state_dict=state_dict, **options)
        usual_modes(Path(folder))

    def restore_finished(self, checkpoint: Path) -> bool:
        """Load the best weights and the state of a run that had made its last step before it was stopped.

        `train` would make another step if the last one was inside an epoch, or an epoch after an early stop.

        Returns:
            False if there are steps left. Then nothing is loaded.
        """
        with _reading_checkpoint():
            state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            wants_stop = state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]
        if not wants_stop and state.global_step < state.max_steps:
            return False
        self.state = state
        self._load_callback_state()
        if self.state.best_model_checkpoint is not None:
            self._load_best_model()
        # The trackers open their runs, for the test scores.
        self.callback_handler.on_train_begin(self.args, state, TrainerControl())
        return True

    def _load_callback_state(self) -> None:
        """Fix the path of the best checkpoint. The trainer calls this right after it reads a checkpoint's state."""
        # The state has an absolute path, which is wrong if the run was moved, and can't be trusted.
        step = self.state.best_global_step
        best = None if step is None else Path(self.args.output_dir) / f"checkpoint-{step}"
        if best is not None and not best.is_dir():
            raise TrainingError(f"{best}, the checkpoint of the best epoch, is missing. Start a new run.")
        self.state.best_model_checkpoint = None if best is None else str(best)
        with _reading_checkpoint():
            super()._load_callback_state()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _reading_checkpoint():
            # Not check_weights: the checkpoint of a run with LoRA is an adapter, and is only read as one.
            check_indexes(Path(resume_from_checkpoint))
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        folder = Path(self.state.best_model_checkpoint)
        with _reading_checkpoint():
            check_indexes(folder)
            # transformers would only log a warning, and keep the weights of the last step.
            if not any(folder.glob("*.safetensors")):
                raise TrainingError(f"{folder}, the checkpoint of the best epoch, has no weights. Start a new run.")
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading_checkpoint():
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading_checkpoint():
            super()._load_rng_state(checkpoint)

    def _named_weights(self) -> Iterable[tuple[str, Any]]:
        """All parameters under all of their names: tied weights, such as embeddings and head, have several."""
        weights: Iterable[tuple[str, Any]] = self.model.named_parameters(remove_duplicate=False)
        return weights

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Reject a checkpoint that lacks anything but frozen weights, buffers and tied names of loaded weights."""
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        buffers = {name for name, _ in self.model.named_buffers()}
        absent = set(load_result.missing_keys)
        loaded = {id(value) for name, value in self._named_weights() if name not in absent}
        tied = {name for name, value in self._named_weights() if id(value) in loaded}
        missing = absent - frozen - buffers - tied
        if missing:
            raise TrainingError(
                f"The checkpoint does not belong to this model: {min(missing)} is missing from it. Start a new run."
            )
        if load_result.unexpected_keys:
            raise TrainingError(
                "The checkpoint does not belong to this model, which has no weight "
                f"{min(load_result.unexpected_keys)}. Start a new run."
            )


def _restore_on_cpu(storage: Any, location: str) -> Any:
    """Load a tensor onto the CPU also if it is called `cpu:0`, as accelerate does for several processes without a GPU.

    torch.load only knows `cpu`.
    """
    return storage if location.startswith("cpu:") else None


torch.serialization.register_package(0, lambda _: None, _restore_on_cpu)


@contextmanager
def _reading_checkpoint() -> Iterator[None]:
    """Raise errors of transformers and torch for an unreadable checkpoint as `TrainingError`."""
    try:
        yield
    except (TrainingError, torch.OutOfMemoryError):
        raise
    except _CHECKPOINT_ERRORS as error:
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        raise TrainingError(
            f"The checkpoint can't be read ({first_line}). Delete its folder to resume from the previous checkpoint, "
            "or start a new run."
        ) from error


class EpochCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Passes the epoch to the sampler.

    accelerate doesn't do so if several processes share the batches and a resumed run skips the first batches.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch before the first batch is drawn."""
        self._sampler.set_epoch(int(state.epoch or 0))


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Requests a checkpoint every `steps` steps.

    The trainer can save by steps, but then also needs to validate by steps to find the best checkpoint.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Request a checkpoint, except at the end of an epoch or of the run.

        The epoch's own checkpoint is written there, after the validation. A run that resumed from an earlier one would
        skip the validation.
        """
        ends = state.epoch == int(state.epoch) or state.global_step >= state.max_steps
        if state.global_step % self._steps == 0 and not ends:
            control.should_save = True


def training_arguments(
    config: FinetuneConfig, checkpoints: Path, device: torch.device, num_examples: int, num_processes: int = 1
) -> TrainingArguments:
    """Convert the settings to `TrainingArguments`.

    Args:
        config: The settings.
        checkpoints: The parent folder of the checkpoints.
        device: The device to train on.
        num_examples: Number of training examples, which determines the number of steps.
        num_processes: Number of processes, each of which takes one batch per forward pass.
    """
    per_epoch, total = count_steps(config, num_examples, num_processes)
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
        seed=config.seed,
        full_determinism=config.deterministic,
        use_cpu=device.type == "cpu",
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        torch_compile=config.compile,
        dataloader_pin_memory=device.type == "cuda",
        eval_strategy="epoch",
        save_strategy="epoch",
        # Keep the last checkpoint to resume from, and the best one to load at the end. (A limit of 1 would keep both
        # too, but remove the last one before the run folder is written.)
        save_total_limit=2,
        # A resumed run must continue the count of early stopping.
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=True,
        metric_for_best_model=LOGGED.get(str(config.select_by), config.select_by),
        greater_is_better=not get_task(str(config.task)).score(str(config.select_by)).lower_is_better,
        logging_strategy="steps",
        # Each epoch has a loss of its own.
        logging_steps=max(1, min(per_epoch, total // _LOGS_PER_RUN)),
        # By default, the trainer replaces a NaN loss in the log with the mean of the losses before it.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        # Every process reads the whole stream and takes its part of each batch. If one process dispatched the batches,
        # they would all need the same padded length.
        accelerator_config={"dispatch_batches": False},
        # `Trackers` calls the trackers, and survives their failures.
        report_to="none",
        label_names=["labels"],
        remove_unused_columns=True,
    )
    if device.type == "cuda":
        # Use one GPU: several in one process mean DataParallel, which is slower than one and changes the batch size.
        arguments._n_gpu = 1
    return arguments


def predict_together(trainer: SurgeonTrainer, dataset: NumberedDataset) -> Outputs:
    """Run the model over a whole set, split over all processes; outputs are in the set's order."""
    trainer.compute_metrics = None
    output = trainer.predict(dataset)
    return in_order(tuple(output.predictions), output.label_ids)


def compute_metrics(prediction: EvalPrediction, measure: Callable[[Outputs], Metrics]) -> dict[str, float]:
    """Compute the scores of a validation during training.

    Args:
        prediction: Outputs of all features, with the feature numbers as labels.
        measure: Computes metrics from outputs in the set's order.
    """
    scores = measure(in_order(tuple(prediction.predictions), prediction.label_ids)).scores
    return {LOGGED.get(name, name): value for name, value in scores.items()}
