"""`finetune_model`: check everything, train, keep the best epoch, measure, write the run's folder."""

import functools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback

from layer_surgeon._folders import list_names
from layer_surgeon._io import usual_modes
from layer_surgeon.errors import DataError, TrainingError, WorkspaceError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.data import TaskData
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
from layer_surgeon.finetune.watching import ProgressCallback
from layer_surgeon.graft.donors import DonorInput
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.workspace import Workspace


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
    **settings: Any,
) -> FinetuneResult:
    """Fine-tune a grafted model, or any model of transformers for one of the tasks.

    Everything that can be wrong with data and settings is found before the first step. The folder appears under its
    name when the run is finished and whole; until then it is called `<name>.unfinished` and holds the checkpoints.

    The seed decides the held-out part, the order of the examples and dropout, and the head's last layer where the data
    has another number of classes than the model. The other fresh weights of a graft were drawn when it was made. With
    the same seed on the same machine and number of threads, a run on the CPU repeats bit for bit.

    Args:
        model_or_path: A folder, a repo id, or a loaded model, which is then trained in place.
        train: A name of `surgeon datasets`, a Hub id, files, a `datasets.Dataset` or `DatasetDict`, or rows.
        validation: In the same forms. Default: the data set's own split, else a part of the training data.
        config: Settings; default: the paper's.
        output: The run's folder; default: in the workspace, named after data and model.
        test: In the same forms as `train`. Default: the data set's own split, if it has one.
        progress: Is told about steps, losses and metrics.
        workspace: Where the default folder lies, and where the run is remembered as the latest.
        tokenizer: A tokenizer, or where one lies; default: the one beside the model.
        donor: The donor layer of a graft that was saved without it: a layer artifact, as folder or repo id.
        resume: Go on with the unfinished run of the same settings, data and folder.
        settings: Fields of `FinetuneConfig`, laid over `config`.

    Raises:
        ConfigError: A setting can't be used, or not on this machine.
        DataError: The data can't be used.
        GraftError: The model can't be used for that data.
        TrainingError: The loss became infinite, memory ran out, or there is nothing to resume.
        WorkspaceError: The folder is in use or can't be written.
        KeyboardInterrupt: Ctrl-C, with a message that says what is kept.
    """
    config, progress = FinetuneConfig.from_settings(config, settings), progress or NullProgress()
    workspace = workspace or Workspace()
    places = {"graft": model_or_path, "dataset": train, "validation": validation, "test": test, "tokenizer": tokenizer}
    places["donor"] = donor
    with quiet(), _deterministic_kernels_as_before():
        processes = join_processes(check_machine(config))
        progress = progress if processes.is_main else NullProgress()
        run = prepare_run(places, config, progress)
        claim = functools.partial(
            claim_folder,
            Path(output) if output is not None else run.default_folder(workspace),
            run.signature | ({} if processes.count == 1 else {"processes": processes.count}),
            resume=resume,
            by_default=output is None,
            progress=progress,
        )
        folder = processes.on_main(claim)
        trackers = Trackers(run.config.trackers if processes.is_main else (), folder, progress)
        with _keeping_what_is_done(folder, progress, processes), trackers:
            result = _train(run, folder, trackers, progress, processes)
    if processes.is_main:
        workspace.set_latest("run", result.path)
    return result


def _train(
    run: Preparation, folder: RunFolder, trackers: Trackers, progress: Progress, processes: Processes
) -> FinetuneResult:
    context, data, sets = run.context, run.data, run.sets
    train_set, config = run.training_set(processes.count)
    model, task = context.model, data.task
    leave_donor_alone(model)
    callbacks: list[Any] = [trackers, ProgressCallback(progress, len(train_set))]
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    if config.checkpoint_steps is not None:
        callbacks.append(CheckpointCallback(config.checkpoint_steps))
    measure = functools.partial(task.measure, dataset=sets["validation"], examples=data.validation, context=context)
    trainer = SurgeonTrainer(
        task=task,
        context=context,
        args=training_arguments(config, folder.checkpoints.resolve(), run.device, len(train_set), processes.count),
        train_dataset=train_set,
        eval_dataset=NumberedDataset(sets["validation"]),
        compute_metrics=functools.partial(compute_metrics, measure=measure),
        callbacks=callbacks,
    )
    parameters = count_parameters(model)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=None if folder.checkpoint is None else str(folder.checkpoint.resolve()))
    seconds = time.monotonic() - started
    progress.end()
    others = [name for name in sets if name != "train"] if processes.count > 1 else []
    outputs = {name: predict_together(trainer, NumberedDataset(sets[name])) for name in others}
    weights = trainer.whole_weights()
    model = as_it_was(model, config)
    context = replace(context, model=model)
    history, steps = read_history(trainer.state.log_history)
    best = next((i for i, epoch in enumerate(history, start=1) if epoch.step == trainer.state.best_global_step), None)
    if best is None:
        raise TrainingError("The checkpoint says that a step was the best one that has no scores. Start a new run.")
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
            progress.notice(f"{folder.work} stays: it holds files that the run has not made ({list_names(remaining)}).")
    processes.wait()
    # A model whose weights were spread is of no use to anybody behind the run.
    return result if weights is None else replace(result, model=load_model(folder.target, task.name))


def _write(run: Preparation, folder: RunFolder, result: FinetuneResult, weights: dict[str, Any] | None) -> None:
    """Put the finished run together; `weights` are those of a model that is spread over several processes."""
    result.model.save_pretrained(folder.final, **({} if weights is None else {"state_dict": weights}))
    usual_modes(folder.final)
    run.context.tokenizer.save_pretrained(folder.final)
    write_run_file(folder.final, run.places, result.config)
    write_report(result, result.model.config, folder.final)


def _measure_all(
    context: TaskContext,
    data: TaskData,
    sets: dict[str, TokenizedDataset],
    outputs: Mapping[str, Outputs],
    progress: Progress,
) -> dict[str, Metrics]:
    """Measure both sets; `outputs` are those that several processes have found together already."""
    measured: dict[str, Metrics] = {}
    for name, part in data.splits.items():
        if name == "train":
            continue
        found = outputs.get(name)
        if found is None:
            doing = {"validation": "Validating", "test": "Testing"}[name]
            found = run_model(data.task, sets[name], context, description=doing, progress=progress)
        metrics = data.task.measure(found, sets[name], part, context)
        measured[name] = data.task.add_scores(metrics, found, part, context, progress)
    return measured


def _device_name(device: torch.device, processes: Processes) -> str:
    several = f", {processes.count} processes" if processes.count > 1 else ""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)}{several})"
    return f"cpu ({torch.get_num_threads()} threads{several})" if device.type == "cpu" else device.type


@contextmanager
def _deterministic_kernels_as_before() -> Iterator[None]:
    """`deterministic` asks torch for it globally; other work of this process should not pay for that."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def _keeping_what_is_done(folder: RunFolder, progress: Progress, processes: Processes) -> Iterator[None]:
    """On failure: keep the last whole checkpoint and say where, or leave nothing; errors of libraries become ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "Memory ran out. Use a smaller --batch-size, with --gradient-accumulation-steps to keep the same updates, "
            f"or a smaller --max-length.{_kept(folder, progress, processes)}"
        ) from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"Interrupted.{_kept(folder, progress, processes)}") from error
    except (OSError, SafetensorError) as error:
        if isinstance(error, WorkspaceError):
            raise WorkspaceError(f"{error}{_kept(folder, progress, processes)}") from error.__cause__
        reason = getattr(error, "strerror", None) or error
        raise WorkspaceError(
            f"{folder.work} can't be written: {reason}.{_kept(folder, progress, processes)}"
        ) from error
    except DataError as error:
        # A bad row of a stream, which nobody could know of before.
        raise DataError(f"{error}{_kept(folder, progress, processes)}") from error.__cause__
    except RuntimeError as error:
        # How torch.save says that the disk is full.
        if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):
            raise WorkspaceError(
                f"{folder.work} can't be written; the disk may be full.{_kept(folder, progress, processes)}"
            ) from error
        if isinstance(error, TrainingError):
            raise TrainingError(f"{error}{_kept(folder, progress, processes)}") from error.__cause__
        _kept(folder, progress, processes)
        raise
    except BaseException:
        _kept(folder, progress, processes)
        raise


def _kept(folder: RunFolder, progress: Progress, processes: Processes) -> str:
    progress.end()
    if not processes.is_main:
        return ""
    checkpoint = folder.abandon()
    if checkpoint is None:
        return " No checkpoint was written yet, so nothing is kept."
    step = checkpoint.name.rsplit("-", 1)[-1]
    return f" What was trained up to step {step} is kept in {folder.work}; --resume goes on from there."
