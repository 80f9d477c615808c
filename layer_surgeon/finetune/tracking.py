"""Report runs to TensorBoard, Weights & Biases, MLflow or Trackio, with the callbacks of transformers.

A tracker must never stop a run: if one fails, the user gets a notice, the tracker is dropped, and training continues.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.folder import RunFolder
from layer_surgeon.finetune.watching import LOGGED
from layer_surgeon.progress import Progress

# The module to import and the package to install for each tracker.
_PACKAGES = {
    "tensorboard": ("torch.utils.tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
    "trackio": ("trackio", "trackio"),
}
# Log values of the trainer that describe the validation itself, not the model.
_LEFT_OUT = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")


def check_trackers(config: FinetuneConfig) -> None:
    """Check that the trackers in `report_to` are installed.

    Raises:
        ConfigError: A tracker is not installed, or can't be imported.
    """
    for name in config.trackers:
        module, package = _PACKAGES[name]
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"report_to is {config.report_to!r}, but the package {package} is not installed. Install it "
                f"(pip install {package}), or remove {name} from report_to."
            ) from error
        except Exception as error:
            raise ConfigError(
                f"report_to is {config.report_to!r}, but {package} can't be imported: {_reason(error)}. Reinstall it, "
                f"or remove {name} from report_to."
            ) from error


class Trackers(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Passes the trainer's log to the trackers, and drops a tracker that fails.

    The end of training is reported only in `finish`, so the test scores still belong to the run.
    """

    def __init__(self, names: Sequence[str], folder: RunFolder, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._trackers: dict[str, Any] = {}
        # Trackers whose run was opened here, and not by the caller.
        self._own = {"tensorboard"}
        self._last_event: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        for name in names:
            with self._guard(name):
                self._trackers[name] = _make_tracker(name, folder)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open a run in each tracker, or use the run that the caller has opened."""
        self._last_event = (args, state, control), kwargs
        args.run_name = self._folder.target.name
        self._own |= {name for name in list(self._trackers) if not self._ask(name, _is_open)}
        self._notify("on_train_begin", args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report losses, learning rate and validation scores."""
        self._last_event = (args, state, control), kwargs
        names = {f"eval_{logged}": f"eval_{name}" for name, logged in LOGGED.items()}
        kept = {names.get(name, name): value for name, value in (logs or {}).items() if name not in _LEFT_OUT}
        self._notify("on_log", args, state, control, logs=kept, **kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report a checkpoint; some trackers can be configured to upload it."""
        self._notify("on_save", args, state, control, **kwargs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close runs that are still open; after an error, mark them as failed."""
        self._close(0 if error is None else 1)

    def finish(self, scores: Mapping[str, float]) -> None:
        """Report the scores of the kept model (`test_accuracy`, `validation_loss`, ...), and close all runs."""
        if self._last_event is not None:
            events, kwargs = self._last_event
            final_scores = {name.replace("validation_", "eval_best_"): value for name, value in scores.items()}
            self._notify("on_log", *events, logs=final_scores, **kwargs)
            self._notify("on_train_end", *events, **kwargs)
        self._close(0)

    def _close(self, code: int) -> None:
        for name in [name for name in self._trackers if name in self._own]:
            if self._ask(name, _is_open):
                with self._guard(name):
                    _CLOSE[name](self._trackers[name], code)
        self._trackers.clear()

    def _ask(self, name: str, question: Callable[[str, Any], bool]) -> bool:
        with self._guard(name):
            return question(name, self._trackers[name])
        return False  # type: ignore[unreachable]  # where the question failed

    def _notify(self, event: str, *arguments: Any, **kwargs: Any) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._guard(name):
                getattr(tracker, event)(*arguments, **kwargs)

    @contextlib.contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        """Drop a tracker that fails, and redirect what it prints from stdout to stderr."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # noqa: BLE001  # A tracker may raise anything.
            self._trackers.pop(name, None)
            self._progress.notice(
                f"{name} failed: {_reason(error)}. The run continues without it; results.json will have all results."
            )


def _make_tracker(name: str, folder: RunFolder) -> TrainerCallback:
    (kind,) = get_reporting_integration_callbacks([name])
    if name == "tensorboard" and "TENSORBOARD_LOGGING_DIR" not in os.environ:
        from torch.utils.tensorboard import SummaryWriter

        # Hide what an interrupted run has logged after its last checkpoint; those steps are trained again.
        return kind(SummaryWriter(str(folder.logs), purge_step=folder.first_step))
    return kind()


def _is_open(name: str, tracker: Any) -> bool:
    """Whether a run is open in the tracker."""
    # The callback has imported the module.
    module: Any = sys.modules.get(name)
    if name == "tensorboard":
        return tracker.tb_writer is not None
    if name == "wandb":
        return module.run is not None
    if name == "mlflow":
        return module.active_run() is not None
    return module.context_vars.current_run.get() is not None


# transformers leaves the run of wandb open, so the next run of this process would write into it. It leaves runs of the
# other trackers open if training fails.
_CLOSE: dict[str, Callable[[Any, int], Any]] = {
    "tensorboard": lambda tracker, code: tracker.tb_writer.close(),
    "wandb": lambda tracker, code: sys.modules["wandb"].finish(exit_code=code),
    "mlflow": lambda tracker, code: sys.modules["mlflow"].end_run("FAILED" if code else "FINISHED"),
    "trackio": lambda tracker, code: sys.modules["trackio"].finish(),
}


def _reason(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    text = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {text}".rstrip(": .")
