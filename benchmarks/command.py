"""The installed `surgeon extract`, and the config of a small checkpoint to test the benchmarks with."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.checkpoints import LLAMA_8B

SURGEON = Path(sys.executable).with_name("surgeon")
SMALL = LLAMA_8B | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": 64}


def plan_last_layer(checkpoint: Path) -> dict[str, Any]:
    """Plan the extraction of a checkpoint's last layer with `surgeon extract --dry-run`."""
    command = [str(SURGEON), "extract", str(checkpoint), "--layer", "-1", "--dry-run", "--json"]
    plan: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return plan
