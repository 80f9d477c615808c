"""Save the last layer with the safetensors library as its documentation shows: the index, safe_open, save_file.

Arguments: the checkpoint's folder, the prefix of the layer's names, and the file to write.
"""

import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

folder, prefix, target = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
names = [name for name in weight_map if name.startswith(prefix)]
tensors = {}
for file in sorted({weight_map[name] for name in names}):
    with safe_open(folder / file, framework="pt") as shard:
        for name in names:
            if weight_map[name] == file:
                tensors[name.removeprefix(prefix)] = shard.get_tensor(name)
save_file(tensors, target)
