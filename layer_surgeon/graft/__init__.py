"""JOIN: host + proj_in + donor + proj_out + head -> an ordinary transformers model.

config          `GraftConfig`: the settings; imports no torch (the command line reads its options from it)
hosts           the kind of a host; loading it without a head
donors          open, check and describe the donor layer
donor_store     store the donor layer with a graft, and find it by its sha256
configuration   `SurgeonGraftConfig`: the content of config.json
storage         saving and loading a grafted model
modeling        `GraftedModel`: the parts, and what they compute
tasks           what each task needs from a graft
sites           the modules of a host that a graft can follow
classification, tokens, question_answering, features, seq2seq, causal
                one model class per task
generation      shared by the tasks that generate text
pooling, head   shared by several tasks
assemble        combine host, donor and settings
build           `graft_layer` in memory, `save_graft` in a folder
card            the model card
adapters        peft adapters (LoRA and others) on a graft
devices         placement of the parts on devices
gate            the gate of residual="gated"
matching        loudness, and projection_init="matched"
export          `export_model`: a graft for other runtimes
push            `push_graft`: upload to the Hub
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

# Lazy, because the command line imports `config` for its help, which must not import torch.
_NAMES_BY_MODULE = {
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
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

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
