"""CUT: a plan known before the first byte, a checked copy, a layer artifact. No torch.

plan        which bytes are read, in which pieces, and where they go
codec       the protocol that turns a tensor's bytes into the artifact's; dtypes and gguf_codec implement it
copy        parallel reads, writes in place, sha256 behind them
card        licence files and the model card
artifact    the folder that comes out: open and verify it
extract     `extract_layer`, which brings them together
"""

from layer_surgeon.extract.artifact import LayerArtifact
from layer_surgeon.extract.extract import extract_layer
from layer_surgeon.extract.plan import ExtractionPlan, plan_extraction

__all__ = ["ExtractionPlan", "LayerArtifact", "extract_layer", "plan_extraction"]
