"""Show steps, loss, learning rate, speed and memory during training, and a line for each validation."""

import math
import resource
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from layer_surgeon.cost.measure import STATUS, status_bytes
from layer_surgeon.errors import TrainingError
from layer_surgeon.progress import Progress
from layer_surgeon.tasks import all_scores, score_title

# The loss needs another name in the log: the trainer uses `eval_loss` for a mean over batches.
LOGGED = {"loss": "cross_entropy"}


def validation_scores(logs: dict[str, float]) -> dict[str, float]:
    """Get the validation scores from a record of the trainer's log, under our names."""
    keys = {name: f"eval_{LOGGED.get(name, name)}" for name in all_scores()}
    return {name: logs[key] for name, key in keys.items() if key in logs}


def memory_bytes(device: torch.device) -> int:
    """The peak memory of tensors on a GPU; else the current memory of this process (on macOS, its peak)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if STATUS.exists():
        return status_bytes("VmRSS")
    # macOS reports bytes; other systems, which report kilobytes, were handled above.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Speedometer:
    """Measures training speed in examples per second, without validations and checkpoints."""

    def __init__(self) -> None:
        self._examples, self._since = 0.0, 0.0

    def restart(self, examples: float) -> None:
        """Start a new measurement at this number of trained examples."""
        self._examples, self._since = examples, time.monotonic()

    def read(self, examples: float) -> float:
        """Return the examples per second since the last reading, and start a new measurement."""
        trained, seconds = examples - self._examples, time.monotonic() - self._since
        self.restart(examples)
        return trained / seconds if seconds > 0 else 0.0


class Stopwatch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Measures a run with its interruptions left out: each checkpoint has the seconds until then in its log."""

    def __init__(self) -> None:
        self._before, self._since = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds of training until now, in all processes that continued the run."""
        return self._before + time.monotonic() - self._since

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the seconds that the checkpoint has of earlier processes."""
        earlier = [record.get("elapsed_seconds") for record in state.log_history]
        self._before += max((seconds for seconds in earlier if isinstance(seconds, int | float)), default=0.0)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the seconds into the log, before the checkpoint is saved."""
        state.log_history[-1]["elapsed_seconds"] = self.seconds


class ProgressCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Passes the trainer's events to a `Progress`, and stops a run whose loss is not finite."""

    def __init__(self, progress: Progress, num_examples: int) -> None:
        self._progress, self._num_examples = progress, num_examples
        self._speed = Speedometer()
        self._losses: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the progress bar; for a resumed run, at its current step."""
        self._progress.begin("Training", state.max_steps, "steps")
        if state.global_step:
            self._progress.advance(state.global_step)
        self._restart(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count an optimizer step."""
        self._progress.advance(1)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log a loss for an epoch that is shorter than the steps from one log to the next."""
        evaluated = max((record["step"] for record in state.log_history if "eval_cross_entropy" in record), default=0)
        if not any("loss" in record and record["step"] > evaluated for record in state.log_history):
            control.should_log = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Exclude the validation from the speed."""
        self._restart(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Exclude the checkpoint from the speed."""
        self._restart(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the training metrics or the validation scores.

        Raises:
            TrainingError: A loss is not finite.
        """
        values = logs or {}
        for name in ("loss", "eval_cross_entropy"):
            if name in values and not math.isfinite(values[name]):
                raise TrainingError(
                    f"The loss is {values[name]} at step {state.global_step}: training has diverged. Try a lower "
                    "--learning-rate, a --warmup-ratio of 0.1 or a smaller --max-grad-norm. If --precision is fp16, "
                    "try bf16 or fp32."
                )
        if "loss" in values:
            self._show_training(args, state, values)
        scores = validation_scores(values)
        if scores:
            self._show_validation(args, state, values, scores)

    def _show_training(self, args: TrainingArguments, state: TrainerState, values: dict[str, float]) -> None:
        self._losses.append(values["loss"])
        shown = {"loss": values["loss"]}
        if "learning_rate" in values:
            shown["learning rate"] = values["learning_rate"]
        shown["samples/s"] = self._speed.read(state.epoch * self._num_examples)
        self._progress.metrics(shown | {"memory": memory_bytes(args.device)})

    def _show_validation(
        self, args: TrainingArguments, state: TrainerState, values: dict[str, float], scores: dict[str, float]
    ) -> None:
        titled = {score_title(name): value for name, value in scores.items()}
        self._progress.metrics({f"val {title}": value for title, value in list(titled.items())[:3]})
        score_texts = [f"{title} {value:.4f}" for title, value in titled.items()]
        training = f"training loss {sum(self._losses) / len(self._losses):.4f}, " if self._losses else ""
        best = " (best so far)" if _is_best(args, state, values) else ""
        self._progress.notice(f"Epoch {state.epoch:.4g}: {training}validation {', '.join(score_texts)}{best}.")
        self._losses.clear()

    def _restart(self, state: TrainerState) -> None:
        self._speed.restart((state.epoch or 0) * self._num_examples)


def _is_best(args: TrainingArguments, state: TrainerState, values: dict[str, float]) -> bool:
    """Whether this validation is the best so far. The trainer compares only after it has logged."""
    value, best = values.get(f"eval_{args.metric_for_best_model}"), state.best_metric
    if value is None or best is None:
        return value is not None
    return bool(value > best) if args.greater_is_better else bool(value < best)
