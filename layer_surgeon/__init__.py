"""Take one layer out of a large language model and graft it into a small one.

tasks       KNOW   what each task needs: hosts, columns, scores, an example     (one record per task)
checkpoint  READ   which tensors a checkpoint has, and where their bytes are    open_checkpoint
hub         SHARE  model cards; a folder -> a repo on the Hub                   (the `surgeon push` command)
extract     CUT    one layer's bytes -> a layer artifact                        plan_extraction, extract_layer
assemble    BUILD  layers of checkpoints, in any order -> a whole checkpoint   plan_assembly, assemble_model
donor       LOAD   layer artifact -> a frozen module, exact                     DonorLayer, DonorStack
run         RUN    a model one layer at a time; measures; comparisons   run_layers, measure_layers, diff_checkpoints
graft       JOIN   host + projections + donor + head -> a transformers model    graft_layer, GraftedModel
cost        COUNT  parameters, multiply-accumulates, memory and time            (the `surgeon profile` command)
finetune    TRAIN  transformers.Trainer with the paper's defaults               finetune_model
study       COMPARE host alone against grafted host, with statistics            (the `surgeon compare` command)
report      SHOW   a study as a page, tables and figures                        (the `surgeon report` command)
"""

import importlib
from typing import TYPE_CHECKING, Any

from layer_surgeon import _auto
from layer_surgeon._version import __version__

if TYPE_CHECKING:
    from layer_surgeon.assemble import (
        AssembledModel,
        AssemblyPlan,
        AssemblyRecipe,
        LayerSlice,
        assemble_model,
        plan_assembly,
    )
    from layer_surgeon.checkpoint import Checkpoint, TensorInfo, open_checkpoint
    from layer_surgeon.donor import DonorLayer, DonorStack, SurgeonDonorConfig
    from layer_surgeon.errors import (
        ArtifactError,
        AssemblyError,
        CheckpointError,
        ConfigError,
        DataError,
        GraftError,
        LayerNotFoundError,
        LayerSurgeonError,
        SourceError,
        TrainingError,
        UnsupportedArchitectureError,
        WorkspaceError,
    )
    from layer_surgeon.extract import ExtractionPlan, LayerArtifact, extract_layer, plan_extraction
    from layer_surgeon.finetune import FinetuneConfig, FinetuneResult, finetune_model
    from layer_surgeon.graft import GraftConfig, GraftedModel, SurgeonGraftConfig, graft_layer
    from layer_surgeon.progress import NullProgress, Progress, ProgressBar
    from layer_surgeon.run import (
        CheckpointDifference,
        HiddenStates,
        LayerMeasures,
        RunConfig,
        diff_checkpoints,
        measure_layers,
        run_layers,
    )
    from layer_surgeon.workspace import Workspace

_HOME = {
    "checkpoint": ("Checkpoint", "TensorInfo", "open_checkpoint"),
    "extract": ("ExtractionPlan", "LayerArtifact", "extract_layer", "plan_extraction"),
    "assemble": ("AssembledModel", "AssemblyPlan", "AssemblyRecipe", "LayerSlice", "assemble_model", "plan_assembly"),
    "donor": ("DonorLayer", "DonorStack", "SurgeonDonorConfig"),
    "run": (
        "CheckpointDifference",
        "HiddenStates",
        "LayerMeasures",
        "RunConfig",
        "diff_checkpoints",
        "measure_layers",
        "run_layers",
    ),
    "graft": ("GraftConfig", "GraftedModel", "SurgeonGraftConfig", "graft_layer"),
    "finetune": ("FinetuneConfig", "FinetuneResult", "finetune_model"),
    "errors": (
        "ArtifactError",
        "AssemblyError",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "GraftError",
        "LayerNotFoundError",
        "LayerSurgeonError",
        "SourceError",
        "TrainingError",
        "UnsupportedArchitectureError",
        "WorkspaceError",
    ),
    "progress": ("NullProgress", "Progress", "ProgressBar"),
    "workspace": ("Workspace",),
}
_ROOM_OF = {name: room for room, names in _HOME.items() for name in names}

__all__ = [
    "ArtifactError",
    "AssembledModel",
    "AssemblyError",
    "AssemblyPlan",
    "AssemblyRecipe",
    "Checkpoint",
    "CheckpointDifference",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DonorLayer",
    "DonorStack",
    "ExtractionPlan",
    "FinetuneConfig",
    "FinetuneResult",
    "GraftConfig",
    "GraftError",
    "GraftedModel",
    "HiddenStates",
    "LayerArtifact",
    "LayerMeasures",
    "LayerNotFoundError",
    "LayerSlice",
    "LayerSurgeonError",
    "NullProgress",
    "Progress",
    "ProgressBar",
    "RunConfig",
    "SourceError",
    "SurgeonDonorConfig",
    "SurgeonGraftConfig",
    "TensorInfo",
    "TrainingError",
    "UnsupportedArchitectureError",
    "Workspace",
    "WorkspaceError",
    "__version__",
    "assemble_model",
    "diff_checkpoints",
    "extract_layer",
    "finetune_model",
    "graft_layer",
    "measure_layers",
    "open_checkpoint",
    "plan_assembly",
    "plan_extraction",
    "run_layers",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import layer_surgeon` stays light."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'layer_surgeon' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layer_surgeon.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


_auto.install()
