"""CUT: plan which bytes to read, copy and hash them, write a layer artifact. Never imports torch.

plan        which bytes to read, in which pieces, and where to write them; with extraction_plan for layers,
            other_tensors for single rows, and embeddings for what acts before layer 0
vocabulary  a table of tokens for another vocabulary, made of the donor's rows
codec       the protocol that converts a tensor's bytes; dtypes, fp8, gguf_codec and permute implement it
copy        parallel reads and writes, sha256 while the file grows; with follow and journal
staging     the folder in which the artifact is written before it is moved to its final path
artifact    open and verify the resulting folder
extract     `extract_layer`, which combines all of these
"""

from layer_surgeon.extract.artifact import LayerArtifact
from layer_surgeon.extract.extract import extract_layer
from layer_surgeon.extract.extraction_plan import ExtractionPlan, plan_extraction

__all__ = ["ExtractionPlan", "LayerArtifact", "extract_layer", "plan_extraction"]
