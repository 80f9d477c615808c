"""Turns a file of torch.save into one of safetensors, so that its bytes can be compared; not measured.

Arguments: the file to read, and the one to write.
"""

import sys

import torch
from safetensors.torch import save_file

save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])
