"""The services that show runs (TensorBoard, Weights & Biases, MLflow, Trackio), by transformers' own callbacks.

They are guests: what goes wrong in one of them is said once, it is not told anything more, and the run goes on.
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

# What is imported, and what is installed.
_PACKAGES = {
    "tensorboard": ("torch.utils.tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
    "trackio": ("trackio", "trackio"),
}
# The trainer's numbers about the validation itself, which say nothing of the model.
_LEFT_OUT = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")


def check_trackers(config: FinetuneConfig) -> None:
    """See that the trackers of `report_to` are installed.

    Raises:
        ConfigError: One is not, or can't be imported.
    """
    for name in config.trackers:
        module, package = _PACKAGES[name]
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"report_to is {config.report_to!r}, and the package {package} is not installed. Install it "
                f"(pip install {package}), or leave {name} out of report_to."
            ) from error
        except Exception as error:
            raise ConfigError(
                f"report_to is {config.report_to!r}, and {package} can't be imported: {_reason(error)}. Install it "
                f"anew, or leave {name} out of report_to."
            ) from error


class Trackers(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Tells the chosen trackers what the trainer logs; one that fails is dropped with a notice.

    What they are told at the end is held back until `finish`, so that the test's scores still belong to the run.
    """

    def __init__(self, names: Sequence[str], folder: RunFolder, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._trackers: dict[str, Any] = {}
        # Which of the runs that are open in them were opened here.
        self._own = {"tensorboard"}
        self._last: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        for name in names:
            with self._guarding(name):
                self._trackers[name] = _make(name, folder)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open a run in each tracker, or take the one that the caller has open."""
        args.run_name = self._folder.target.name
        self._own |= {name for name in list(self._trackers) if not self._ask(name, _is_open)}
        self._tell("on_train_begin", args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hand on losses, learning rate and validation scores."""
        self._last = (args, state, control), kwargs
        names = {f"eval_{logged}": f"eval_{name}" for name, logged in LOGGED.items()}
        kept = {names.get(name, name): value for name, value in (logs or {}).items() if name not in _LEFT_OUT}
        self._tell("on_log", args, state, control, logs=kept, **kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say that there is a checkpoint, which a tracker may be set to keep."""
        self._tell("on_save", args, state, control, **kwargs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """End what is still open; after an error as a run that failed."""
        self._close(0 if error is None else 1)

    def finish(self, scores: Mapping[str, float]) -> None:
        """End the run in each tracker, with the scores of the kept model: `test_accuracy`, `validation_loss`, ..."""
        if self._last is not None:
            events, kwargs = self._last
            named = {name.replace("validation_", "eval_best_"): value for name, value in scores.items()}
            self._tell("on_log", *events, logs=named, **kwargs)
            self._tell("on_train_end", *events, **kwargs)
        self._close(0)

    def _close(self, code: int) -> None:
        for name in [name for name in self._trackers if name in self._own]:
            if self._ask(name, _is_open):
                with self._guarding(name):
                    _END[name](self._trackers[name], code)
        self._trackers.clear()

    def _ask(self, name: str, question: Callable[[str, Any], bool]) -> bool:
        with self._guarding(name):
            return question(name, self._trackers[name])
        return False  # type: ignore[unreachable]  # where the question failed

    def _tell(self, event: str, *arguments: Any, **kwargs: Any) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._guarding(name):
                getattr(tracker, event)(*arguments, **kwargs)

    @contextlib.contextmanager
    def _guarding(self, name: str) -> Iterator[None]:
        """Keep a tracker's failure, and what it prints, away from the run and from the command's output."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # noqa: BLE001  # of other people's services anything may come
            self._trackers.pop(name, None)
            self._progress.notice(
                f"{name} failed: {_reason(error)}. The run goes on without it; all results will be in results.json."
            )


def _make(name: str, folder: RunFolder) -> TrainerCallback:
    (kind,) = get_reporting_integration_callbacks([name])
    if name == "tensorboard" and "TENSORBOARD_LOGGING_DIR" not in os.environ:
        from torch.utils.tensorboard import SummaryWriter

        # What an interrupted run had written behind the checkpoint would else be drawn beside what comes now.
        return kind(SummaryWriter(str(folder.logs), purge_step=folder.first_step))
    return kind()


def _is_open(name: str, tracker: Any) -> bool:
    """Whether a run is open in it."""
    # The callback has imported it.
    module: Any = sys.modules.get(name)
    if name == "tensorboard":
        return tracker.tb_writer is not None
    if name == "wandb":
        return module.run is not None
    if name == "mlflow":
        return module.active_run() is not None
    return module.context_vars.current_run.get() is not None


# Of wandb transformers leaves the run open, into which the next one of this process would be written; of the others,
# where training has failed.
_END: dict[str, Callable[[Any, int], Any]] = {
    "tensorboard": lambda tracker, code: tracker.tb_writer.close(),
    "wandb": lambda tracker, code: sys.modules["wandb"].finish(exit_code=code),
    "mlflow": lambda tracker, code: sys.modules["mlflow"].end_run("FAILED" if code else "FINISHED"),
    "trackio": lambda tracker, code: sys.modules["trackio"].finish(),
}


def _reason(error: Exception) -> str:
    """The first line of what it says, or its kind."""
    text = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {text}".rstrip(": .")
