"""READ: which tensors it has and where their bytes are. No torch.

sources       folders, files, Hub repos and URLs: the only code that does I/O
types         TensorInfo, ByteRange, TensorTable: plain data
safetensors   headers and indexes of safetensors files
torch_table   PyTorch .bin files: zip directories and pickles, parsed without running them
gguf          headers of GGUF files, with the tensor names and shapes of transformers; uses gguf_families.json
stack         which tensors form the decoder layers; uses families.json
licence       the licence that a checkpoint's model card, metadata and files state
formats       chooses the format by the file names and opens the table that reads it
checkpoint    `open_checkpoint`, which combines the modules above
packaged      real weights from Python packages, for the demo and the benchmarks
"""

from layer_surgeon.checkpoint.checkpoint import Checkpoint, open_checkpoint
from layer_surgeon.checkpoint.types import ByteRange, TensorInfo, TensorShape, TensorTable

__all__ = ["ByteRange", "Checkpoint", "TensorInfo", "TensorShape", "TensorTable", "open_checkpoint"]
