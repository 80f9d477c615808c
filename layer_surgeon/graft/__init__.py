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

import lazy_loader

# Lazy, because the command line imports `config` for its help, which must not import torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
