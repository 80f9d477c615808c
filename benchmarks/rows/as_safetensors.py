"""Convert a file of torch.save to safetensors, to compare its bytes. Not part of the measurement.

Arguments: the file to read, and the one to write.
"""

import sys

import torch
from safetensors.torch import save_file

save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])
