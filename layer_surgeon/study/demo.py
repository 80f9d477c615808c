"""The demo: the preset `demo` as a study in its own folder, with real models and data from Python packages."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.progress import Progress
from layer_surgeon.study.compare import StudyResult, run_study
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.preset import preset
from layer_surgeon.workspace import Workspace


def run_demo(
    workspace: Workspace | None = None,
    progress: Progress | None = None,
    *,
    parts: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    config: FinetuneConfig | None = None,
) -> StudyResult:
    """Train the host alone and the host with a layer of a language model, and test both on three data sets.

    The study's folder is the folder `demo` of the workspace, so the user's latest layer, graft and run don't change.
    The trained models stay in its `runs/`. A second run reuses the layer and all finished trainings.

    Args:
        workspace: The workspace in which the folder `demo` is created.
        progress: Receives an update for every training.
        parts: Keys of the plan, such as host, donor and data, that replace those of the preset.
        seeds: The seeds; the preset's by default. Every arm is trained once with each of them.
        config: The settings; the paper's by default. Its seed is ignored.

    Raises:
        SourceNotFoundError: The packages of the extra [demo] are not installed.
        WorkspaceError: The workspace can't be written.
    """
    content = preset("demo") | {"keep_models": True} | dict(parts or {})
    if seeds is not None:
        content["seeds"] = list(seeds)
    if config is not None:
        content["fractions"] = [config.train_fraction]
        content["finetune"] = {
            item.name: getattr(config, item.name)
            for item in fields(config)
            if item.name not in ("seed", "train_fraction") and getattr(config, item.name) != item.default
        }
    return run_study(StudyPlan.from_dict(content), (workspace or Workspace()).root / "demo", progress=progress)
