"""JOIN: host + proj_in + donor + proj_out + head -> an ordinary transformers model.

config          `GraftConfig`: the settings, light to import (the command line reads its options from them)
hosts           what kind of model a host is; loading it without a head
donors          the donor layer: opened, checked, described
donor_store     the donor layer beside a stored graft: a hard link, found again by its sha256
configuration   `SurgeonGraftConfig`: what config.json says
modeling        `GraftedModel`: the parts, and how they are saved and loaded
tasks           what each task needs of a graft
sites           where the graft sits in the host, found from the host's structure
classification, tokens, question_answering, features, seq2seq, causal
                a class for each task
pooling, head   what several tasks share
assemble        host, donor and settings put together
build           `graft_layer` in memory, `save_graft` into a folder
card            the model card
adapters        LoRA and its kin (peft) on a graft
devices         which part lies on which device
gate            the gate of residual="gated"
matching        projection_init="matched": projections as loud as the donor layer and the host
export          `export_model`: a graft for other runtimes
push            `push_graft`: onto the Hub
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layer_surgeon.graft.adapters import adapter_settings
    from layer_surgeon.graft.auto import (
        AUTO_CLASSES,
        GraftedModel,
        GraftedModelForCausalLM,
        GraftedModelForFeatureExtraction,
        GraftedModelForQuestionAnswering,
        GraftedModelForSeq2SeqLM,
        GraftedModelForSequenceClassification,
        GraftedModelForTokenClassification,
    )
    from layer_surgeon.graft.build import GraftResult, graft_layer, save_graft
    from layer_surgeon.graft.config import GraftConfig
    from layer_surgeon.graft.configuration import SurgeonGraftConfig
    from layer_surgeon.graft.export import ExportResult, export_model
    from layer_surgeon.graft.push import PushResult, push_graft

# Lazy, because the command line needs `config` for its help, and must not import torch for that.
_HOME = {
    "adapters": ("adapter_settings",),
    "auto": (
        "AUTO_CLASSES",
        "GraftedModel",
        "GraftedModelForCausalLM",
        "GraftedModelForFeatureExtraction",
        "GraftedModelForQuestionAnswering",
        "GraftedModelForSeq2SeqLM",
        "GraftedModelForSequenceClassification",
        "GraftedModelForTokenClassification",
    ),
    "build": ("GraftResult", "graft_layer", "save_graft"),
    "config": ("GraftConfig",),
    "configuration": ("SurgeonGraftConfig",),
    "export": ("ExportResult", "export_model"),
    "push": ("PushResult", "push_graft"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AUTO_CLASSES",
    "ExportResult",
    "GraftConfig",
    "GraftResult",
    "GraftedModel",
    "GraftedModelForCausalLM",
    "GraftedModelForFeatureExtraction",
    "GraftedModelForQuestionAnswering",
    "GraftedModelForSeq2SeqLM",
    "GraftedModelForSequenceClassification",
    "GraftedModelForTokenClassification",
    "PushResult",
    "SurgeonGraftConfig",
    "adapter_settings",
    "export_model",
    "graft_layer",
    "push_graft",
    "save_graft",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'layer_surgeon.graft' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layer_surgeon.graft.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
