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

import lazy_loader

from layer_surgeon import _auto
from layer_surgeon._version import __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]

_auto.install()
