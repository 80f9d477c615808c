"""JOIN: host + proj_in + donor + proj_out + head -> an ordinary transformers model.

config          `GraftConfig`: the settings; imports no torch (the command line reads its options from it)
hosts           the kind of a host; loading it without a head
donor_loading   open, check and describe the donor layer
donor_store     store the donor layer with a graft, and find it by its sha256
model_config    `SurgeonGraftConfig`: the content of config.json
storage         saving and loading a grafted model
modeling        `GraftedModel`: the parts, and what they compute
sites           the modules of a host that a graft can follow
classification, tokens, question_answering, features, seq2seq, causal
                one model class per task; the records in layer_surgeon/tasks name them
generation      shared by the tasks that generate text
pooling, head   shared by several tasks
reading         the states of a donor that reads text, and their norm
graft_tokenizer `GraftTokenizer`: the host's tokens and the donor's own
part_tokenizers load the tokenizers of host and donor, and check that a stack reads the host's tokens
assemble        combine host, donor and settings
build           `graft_layer` in memory, `save_graft` in a folder
graft_facts     the facts of the model card
adapters        peft adapters (LoRA and others) on a graft
devices         placement of the parts on devices
gate            the gate of residual="gated"
matching        loudness, and projection_init="matched"
export          `export_model`: a graft for other runtimes
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layer_surgeon.graft.adapters import adapter_settings
    from layer_surgeon.graft.build import GraftResult, graft_layer, save_graft
    from layer_surgeon.graft.causal import GraftedModelForCausalLM
    from layer_surgeon.graft.classification import GraftedModelForSequenceClassification
    from layer_surgeon.graft.config import GraftConfig
    from layer_surgeon.graft.export import ExportResult, export_model
    from layer_surgeon.graft.features import GraftedModelForFeatureExtraction
    from layer_surgeon.graft.graft_tokenizer import GraftTokenizer
    from layer_surgeon.graft.model_config import SurgeonGraftConfig
    from layer_surgeon.graft.modeling import GraftedModel
    from layer_surgeon.graft.question_answering import GraftedModelForQuestionAnswering
    from layer_surgeon.graft.seq2seq import GraftedModelForSeq2SeqLM
    from layer_surgeon.graft.tokens import GraftedModelForTokenClassification
    from layer_surgeon.hub.push import PushResult, push_graft

# Lazy, because the command line imports `config` for its help, which must not import torch.
_NAMES_BY_MODULE = {
    "graft.adapters": ("adapter_settings",),
    "graft.build": ("GraftResult", "graft_layer", "save_graft"),
    "graft.causal": ("GraftedModelForCausalLM",),
    "graft.classification": ("GraftedModelForSequenceClassification",),
    "graft.config": ("GraftConfig",),
    "graft.export": ("ExportResult", "export_model"),
    "graft.features": ("GraftedModelForFeatureExtraction",),
    "graft.graft_tokenizer": ("GraftTokenizer",),
    "graft.model_config": ("SurgeonGraftConfig",),
    "graft.modeling": ("GraftedModel",),
    "hub.push": ("PushResult", "push_graft"),
    "graft.question_answering": ("GraftedModelForQuestionAnswering",),
    "graft.seq2seq": ("GraftedModelForSeq2SeqLM",),
    "graft.tokens": ("GraftedModelForTokenClassification",),
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = [
    "ExportResult",
    "GraftConfig",
    "GraftResult",
    "GraftTokenizer",
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
    value = getattr(importlib.import_module(f"layer_surgeon.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
