"""`finetune_model`: check all inputs, train, keep the best epoch, evaluate it, and write the run folder."""

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback

from layer_surgeon._folders import expand_home
from layer_surgeon._format import list_names
from layer_surgeon._io import usual_modes
from layer_surgeon.errors import ConfigError, DataError, TrainingError, WorkspaceError
from layer_surgeon.finetune.checkpoints import step_of
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.data import TaskData
from layer_surgeon.finetune.donor_states import StateCache
from layer_surgeon.finetune.folder import RunFolder, claim_folder
from layer_surgeon.finetune.inference import run_model
from layer_surgeon.finetune.metrics import Metrics
from layer_surgeon.finetune.models import ModelLike, check_machine, count_parameters, load_model, quiet
from layer_surgeon.finetune.parts import as_it_was
from layer_surgeon.finetune.prepare import Preparation, prepare_run
from layer_surgeon.finetune.processes import Processes, join_processes, leave_donor_alone
from layer_surgeon.finetune.record import write_run_file
from layer_surgeon.finetune.report import write_report
from layer_surgeon.finetune.results import FinetuneResult, read_history
from layer_surgeon.finetune.sources import DataLike
from layer_surgeon.finetune.tasks import Outputs, TaskContext
from layer_surgeon.finetune.tokenization import NumberedDataset, TokenizedDataset
from layer_surgeon.finetune.tracking import Trackers
from layer_surgeon.finetune.trainer import (
    CheckpointCallback,
    SurgeonTrainer,
    compute_metrics,
    predict_together,
    training_arguments,
)
from layer_surgeon.finetune.watching import ProgressCallback, Stopwatch
from layer_surgeon.graft.donor_loading import DonorInput
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.workspace import DONOR_STATES, Workspace


def finetune_model(
    model_or_path: ModelLike,
    train: DataLike,
    validation: DataLike | None = None,
    *,
    config: FinetuneConfig | None = None,
    output: str | os.PathLike[str] | None = None,
    test: DataLike | None = None,
    progress: Progress | None = None,
    workspace: Workspace | None = None,
    tokenizer: Any = None,
    donor: DonorInput = None,
    resume: bool = False,
    states: StateCache | None = None,
    **settings: Any,
) -> FinetuneResult:
    """Fine-tune a grafted model, or any transformers model for one of the supported tasks.

    All data and settings are checked before the first step. While the run is unfinished, its folder is called
    `<name>.unfinished` and contains the checkpoints. The finished run appears as `<name>`.

    The seed determines the held-out rows, the order of the examples, and dropout. It also determines the last layer of
    the head, if that layer is re-initialised because the data has a different number of classes. The other new weights
    of a graft were initialised when the graft was made. A CPU run with the same seed, machine and number of threads
    gives the same result, bit for bit.

    Args:
        model_or_path: A folder, a repo id, or a loaded model. A loaded model is trained in place.
        train: A name listed by `surgeon datasets`, a Hub id, files, a `datasets.Dataset` or `DatasetDict`, or rows.
        validation: Validation data, in any form that `train` accepts. Default: the data set's validation split, else
            rows held out from the training data.
        config: Settings. Default: the paper's.
        output: Folder of the run. Default: a folder in the workspace, named after the data and the model.
        test: Test data, in any form that `train` accepts. Default: the data set's test split, if it has one.
        progress: Receives steps, losses and metrics.
        workspace: Contains the default output folder, and remembers this run as the latest one.
        tokenizer: A tokenizer, or its folder or repo id. Default: the tokenizer stored with the model; for a graft that
            `graft_layer` made in memory, the one of its host.
        donor: The donor layer, for a graft that was saved without it: a layer artifact, as a folder or repo id.
        resume: Continue an unfinished run with the same settings, data and folder.
        states: Where the states of a frozen donor that reads text are kept. Default: in the workspace.
        settings: Fields of `FinetuneConfig` that override `config`.

    Raises:
        ConfigError: A setting is invalid, or this machine does not support it.
        DataError: The data can't be used.
        GraftError: The model does not fit the data or the task.
        TrainingError: The loss became infinite or NaN, memory ran out, or there is nothing to resume.
        WorkspaceError: The folder is in use or can't be written.
        KeyboardInterrupt: Ctrl-C was pressed. The message says which checkpoint was kept.
    """
    config, progress = FinetuneConfig.from_settings(config, settings), progress or NullProgress()
    workspace = workspace or Workspace()
    sources = {"graft": model_or_path, "dataset": train, "validation": validation, "test": test, "tokenizer": tokenizer}
    sources["donor"] = donor
    with quiet(), _restore_deterministic_mode():
        processes = join_processes(check_machine(config))
        progress = progress if processes.is_main else NullProgress()
        run = prepare_run(sources, config, progress)
        with _restore_model(run, processes):
            claim = functools.partial(
                claim_folder,
                Path(expand_home(output)) if output is not None else run.default_folder(workspace),
                run.signature | ({} if processes.count == 1 else {"processes": processes.count}),
                resume=resume,
                by_default=output is None,
                progress=progress,
            )
            folder = processes.on_main(claim)
            trackers = Trackers(run.config.trackers if processes.is_main else (), folder, progress)
            with _keep_checkpoint_on_failure(folder, progress, processes), trackers:
                states = states or StateCache(folder=workspace.root / DONOR_STATES)
                if run.data.stream is None:
                    states.attach(run.sets, run.context, progress, device=run.device)
                elif states.shuffle_seed is not None:
                    raise ConfigError("The donor's states can't be shuffled in a stream. Set streaming to false.")
                result = _train(run, folder, trackers, progress, processes)
    if processes.is_main:
        workspace.set_latest("run", result.path, progress)
    return result


def _train(
    run: Preparation, folder: RunFolder, trackers: Trackers, progress: Progress, processes: Processes
) -> FinetuneResult:
    context, data, sets = run.context, run.data, run.sets
    train_set, config = run.training_set(processes.count)
    model, task = context.model, data.task
    leave_donor_alone(model)
    measure = functools.partial(task.measure, dataset=sets["validation"], examples=data.validation, context=context)
    trainer = SurgeonTrainer(
        task=task,
        context=context,
        args=training_arguments(config, folder.checkpoints.resolve(), run.device, len(train_set), processes.count),
        train_dataset=train_set,
        eval_dataset=NumberedDataset(sets["validation"]),
        compute_metrics=functools.partial(compute_metrics, measure=measure),
        callbacks=[trackers, ProgressCallback(progress, len(train_set)), *_optional_callbacks(config)],
    )
    parameters = count_parameters(model)
    stopwatch = Stopwatch()
    trainer.add_callback(stopwatch)
    checkpoint = None if folder.checkpoint is None else folder.checkpoint.resolve()
    if checkpoint is None or processes.count > 1 or not trainer.restore_finished(checkpoint):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    progress.end()
    seconds = stopwatch.seconds
    evaluated_splits = [name for name in sets if name != "train"] if processes.count > 1 else []
    outputs = {name: predict_together(trainer, NumberedDataset(sets[name])) for name in evaluated_splits}
    weights = trainer.whole_weights()
    model = as_it_was(model, config, run.before)
    model.new_weights = []  # They have been trained.
    context = replace(context, model=model)
    history, steps = read_history(trainer.state.log_history)
    best = next((i for i, epoch in enumerate(history, start=1) if epoch.step == trainer.state.best_global_step), None)
    if best is None:
        raise TrainingError("The checkpoint names a best step that has no scores. Start a new run.")
    measured = _measure_all(context, data, sets, outputs, progress)
    result = FinetuneResult(
        path=folder.target,
        task=task.name,
        validation=measured["validation"],
        test=measured.get("test"),
        history=history,
        best_epoch=best,
        label_names=data.label_names,
        config=config,
        data=data.facts() | {"truncated": {name: part.num_truncated for name, part in sets.items()}},
        parameters=parameters,
        steps=steps,
        seconds=seconds,
        device=_device_name(run.device, processes),
        model=model,
    )
    if processes.is_main:
        _write(run, folder, result, weights)
        trackers.finish(result.metrics)
        if remaining := folder.finish():
            progress.notice(
                f"{folder.work} was not removed: it contains files that this run did not create "
                f"({list_names(remaining)})."
            )
    processes.wait()
    # Each process has only its shard of the weights, so the caller gets a whole model, loaded from the run folder.
    return result if weights is None else replace(result, model=load_model(folder.target, task.name))


def _optional_callbacks(config: FinetuneConfig) -> list[Any]:
    callbacks: list[Any] = []
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    if config.checkpoint_steps is not None:
        callbacks.append(CheckpointCallback(config.checkpoint_steps))
    return callbacks


def _write(run: Preparation, folder: RunFolder, result: FinetuneResult, weights: dict[str, Any] | None) -> None:
    """Write the finished run; `weights` are the gathered weights of a model sharded over several processes."""
    result.model.save_pretrained(folder.final, **({} if weights is None else {"state_dict": weights}))
    usual_modes(folder.final)
    run.context.tokenizer.save_pretrained(folder.final)
    write_run_file(folder.final, run.sources, result.config)
    write_report(result, result.model.config, folder.final)


def _measure_all(
    context: TaskContext,
    data: TaskData,
    sets: dict[str, TokenizedDataset],
    outputs: Mapping[str, Outputs],
    progress: Progress,
) -> dict[str, Metrics]:
    """Compute the metrics of the validation and test sets; `outputs` has those already predicted by all processes."""
    measured: dict[str, Metrics] = {}
    for name, part in data.splits.items():
        if name == "train":
            continue
        split_outputs = outputs.get(name)
        if split_outputs is None:
            description = {"validation": "Validating", "test": "Testing"}[name]
            split_outputs = run_model(data.task, sets[name], context, description=description, progress=progress)
        metrics = data.task.measure(split_outputs, sets[name], part, context)
        measured[name] = data.task.add_scores(metrics, split_outputs, part, context, progress)
    return measured


def _device_name(device: torch.device, processes: Processes) -> str:
    several = f", {processes.count} processes" if processes.count > 1 else ""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)}{several})"
    return f"cpu ({torch.get_num_threads()} threads{several})" if device.type == "cpu" else device.type


@contextmanager
def _restore_deterministic_mode() -> Iterator[None]:
    """Restore torch's global deterministic mode, which the `deterministic` setting changes."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def _restore_model(run: Preparation, processes: Processes) -> Iterator[None]:
    """Let the caller's model compute in its own precision again, and on failure leave it without adapters as before.

    Shards stay as they are.
    """
    try:
        yield
    except BaseException:
        if processes.count == 1:
            as_it_was(run.context.model, run.config, run.before, merge=False)
        raise
    finally:
        # In half precision, accelerate has replaced the model's forward.
        extract_model_from_parallel(run.context.model, keep_fp32_wrapper=False)


@contextmanager
def _keep_checkpoint_on_failure(folder: RunFolder, progress: Progress, processes: Processes) -> Iterator[None]:
    """On failure, keep the last complete checkpoint and name it in the error; remove everything if there is none.

    Errors from libraries are raised as the matching `LayerSurgeonError`.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "Memory ran out. Use a smaller --batch-size, with --gradient-accumulation-steps to keep the same updates, "
            f"or a smaller --max-length.{_abandon(folder, progress, processes)}"
        ) from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"Interrupted.{_abandon(folder, progress, processes)}") from error
    except (OSError, SafetensorError) as error:
        if isinstance(error, WorkspaceError):
            raise WorkspaceError(f"{error}{_abandon(folder, progress, processes)}") from error.__cause__
        reason = getattr(error, "strerror", None) or error
        raise WorkspaceError(
            f"{folder.work} can't be written: {reason}.{_abandon(folder, progress, processes)}"
        ) from error
    except DataError as error:
        # A bad row of a stream, found only when it is read.
        raise DataError(f"{error}{_abandon(folder, progress, processes)}") from error.__cause__
    except RuntimeError as error:
        # torch.save reports a full disk in these words.
        if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):
            raise WorkspaceError(
                f"{folder.work} can't be written; the disk may be full.{_abandon(folder, progress, processes)}"
            ) from error
        if isinstance(error, TrainingError):
            raise TrainingError(f"{error}{_abandon(folder, progress, processes)}") from error.__cause__
        _abandon(folder, progress, processes)
        raise
    except BaseException:
        _abandon(folder, progress, processes)
        raise


def _abandon(folder: RunFolder, progress: Progress, processes: Processes) -> str:
    """Stop using the run folder, and say what was kept in it."""
    progress.end()
    if not processes.is_main:
        return ""
    checkpoint = folder.abandon()
    if checkpoint is None:
        return " No checkpoint had been written yet, so nothing was kept."
    return f" Training up to step {step_of(checkpoint)} is saved in {folder.work}; continue with --resume."
