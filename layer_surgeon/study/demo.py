"""The demo: the preset `demo` as a study in its own folder, with real models and data from Python packages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from layer_surgeon.assemble import AssembledModel, assemble_model
from layer_surgeon.assemble.assembled_model import is_assembled_model
from layer_surgeon.errors import ConfigError
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.study.arms import Arm, is_called
from layer_surgeon.study.cells import run_cell
from layer_surgeon.study.compare import StudyResult, run_study
from layer_surgeon.study.layout import StudyFolder, locked
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.plan_parts import listed
from layer_surgeon.study.preset import preset
from layer_surgeon.study.records import CellResult
from layer_surgeon.workspace import Workspace, stack_name

# Each epoch reads all texts with the whole cut model, which stays as it is: one epoch gave 89.4 % on the validation
# part, three gave 91.9 % in three times the time, and one with batches of 8 gave 80.6 %.
_CUT: Mapping[str, Any] = MappingProxyType({"num_epochs": 1.0, "head_learning_rate": 1e-3})


def run_demo(
    workspace: Workspace | None = None,
    progress: Progress | None = None,
    *,
    parts: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    finetune: Mapping[str, Any] | None = None,
) -> StudyResult:
    """Train a small model alone, with the first half of a language model, and with its last layer; test all of them.

    The study's folder is the folder `demo` of the workspace, so the user's latest layer, graft and run don't change.
    The trained models stay in its `runs/`. A second run reuses the layers and all finished trainings.

    Args:
        workspace: The workspace in which the folder `demo` is created.
        progress: Receives an update for every training.
        parts: Keys of the plan, such as host, arms and data, that replace those of the preset.
        seeds: The seeds; the preset's by default. Every arm is trained once with each of them.
        finetune: Fields of `FinetuneConfig` that override those of the preset and of its arms.

    Raises:
        ConfigError: A key or value of `parts` or `finetune` is wrong.
        SourceNotFoundError: The packages of the extra [demo] are not installed.
        WorkspaceError: The workspace can't be written.
    """
    content = preset("demo") | {"keep_models": True} | dict(parts or {})
    if seeds is not None:
        content["seeds"] = list(seeds)
    changes = dict(finetune or {})
    if "train_fraction" in changes:
        content["fractions"] = [changes.pop("train_fraction")]
    content["finetune"] = {**content["finetune"], **changes}
    content["arms"] = [_override(arm, changes) for arm in listed(content, "arms", [])]
    # Two trainings at a time use two cores better than one training with two threads.
    folder = (workspace or Workspace()).root / "demo"
    return run_study(StudyPlan.from_dict(content), folder, workers=2, progress=progress)


def _override(arm: Any, changes: Mapping[str, Any]) -> Any:
    """Return an arm of the plan without settings of its own for what the user sets."""
    if not isinstance(arm, Mapping):
        return arm
    return {**arm, "finetune": {name: value for name, value in arm.get("finetune", {}).items() if name not in changes}}


@dataclass(frozen=True, kw_only=True)
class CutModel:
    """A language model cut to its first layers, and its training.

    Attributes:
        model: The cut model: an ordinary transformers folder, without a head for classes.
        trained: The folder of the cut model with a trained head, for `predict`.
        result: The scores of the trained model.
    """

    model: AssembledModel
    trained: Path
    result: CellResult


def cut_donor(study: Path, progress: Progress | None = None) -> CutModel:
    """Cut the donor of the demo's stack to the same layers, with `assemble_model`, and train a head on top of them.

    The cut model is a host like any other. Its layers stay frozen. It is trained and tested on the texts of the demo,
    with the first seed, and is not one of the arms that the study compares. A second call reuses it.

    Args:
        study: The folder of the demo, after `run_demo`.
        progress: Receives the bytes that are read, and the training.

    Raises:
        ConfigError: The study is about an arm without a stack.
        LayerSurgeonError: As in `assemble_model` and `finetune_model`.
    """
    folder, progress = StudyFolder(root=study), progress or NullProgress()
    plan = StudyPlan.read(folder.plan)
    cell = next((cell for cell in plan.cells() if is_called(plan.focus, cell.arm.name)), None)
    donor = None if cell is None else cell.arm.donor
    if cell is None or donor is None or donor.form != "stack":
        raise ConfigError(
            f"The focus of {study} is {plan.focus}, which has no stack whose donor could be cut. Set focus to an arm "
            "with a stack."
        )
    path = folder.path(stack_name(donor.shown_source, len(donor.layers)))
    with locked(folder.lock, wait=False):
        if not is_assembled_model(path):
            assemble_model(donor.source, path, keep=list(donor.layers), dtype="bfloat16", progress=progress)
        arm = Arm(name="cut", kind="host", host=str(path), donor=None, graft={"pooling": "mean"})
        settings = {**_CUT, **plan.finetune, "train_host": "frozen"}
        settings |= {"seed": cell.seed, "train_fraction": cell.fraction}
        cell = replace(cell, arm=arm, tests=(cell.data,), finetune=settings)
        result = run_cell(cell, folder, progress)
    return CutModel(model=AssembledModel.open(path), trained=folder.run(cell.id), result=result)
