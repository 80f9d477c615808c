"""READ: what tensors a checkpoint has and where their bytes are. No torch.

sources       the places: folder, file, Hub repo; the only code that reads
types         TensorInfo, ByteRange, TensorTable: plain data
safetensors   headers and indexes of safetensors files
torch_table   PyTorch .bin files: zip directories and pickles, read as descriptions
gguf          the header of a GGUF file, in transformers' terms
stack         which tensors are the decoder's layers; families.json
licence       what a checkpoint's card, metadata and files say about its licence
formats       from the names of the files at a place to the table that reads them
checkpoint    `open_checkpoint`, which brings them together
packaged      real weights that come in Python packages, for the demo and benchmarks; joined: parts, read as one
"""

from layer_surgeon.checkpoint.checkpoint import Checkpoint, open_checkpoint
from layer_surgeon.checkpoint.types import ByteRange, TensorInfo, TensorShape, TensorTable

__all__ = ["ByteRange", "Checkpoint", "TensorInfo", "TensorShape", "TensorTable", "open_checkpoint"]
