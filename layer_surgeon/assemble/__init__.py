"""BUILD: layers of one or several checkpoints, in any order -> a whole checkpoint. Never imports torch.

recipe           which layers of which sources; recipe_files reads it from YAML, also mergekit's passthrough
model_source     one source of layers; text_only takes the language model out of a vision-language checkpoint
compatible       refuse sources of other vocabularies or dtypes
layer_settings   the new config.json, from what `assembly_families.json` knows about each family; with layer_rules
                 and ignored_settings, in which sources may differ
shards           the tensors of the new model, and the files that they are written to
assembly_plan    the shards of the new model, with every byte to read, before the first one is read
assembly         `assemble_model`, which combines all of these with the copy of `extract`
assembled_model  open and verify the resulting folder
"""

from layer_surgeon.assemble.assembled_model import AssembledModel
from layer_surgeon.assemble.assembly import assemble_model
from layer_surgeon.assemble.assembly_plan import AssemblyPlan, plan_assembly
from layer_surgeon.assemble.recipe import AssemblyRecipe, LayerSlice

__all__ = ["AssembledModel", "AssemblyPlan", "AssemblyRecipe", "LayerSlice", "assemble_model", "plan_assembly"]
