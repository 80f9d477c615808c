"""Load the whole model and save its last layer, as the paper's own code does, in the checkpoint's own dtype.

Arguments: the checkpoint's folder, and the file to write.
"""

import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
save_file(model.model.layers[-1].state_dict(), sys.argv[2])
