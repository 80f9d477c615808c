"""`surgeon extract` as it is installed, and a small checkpoint to see that a benchmark works."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.checkpoints import LLAMA_8B

SURGEON = Path(sys.executable).with_name("surgeon")
SMALL = LLAMA_8B | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": 64}


def plan_last_layer(checkpoint: Path) -> dict[str, Any]:
    """What `surgeon extract --dry-run` says of a checkpoint's last layer."""
    command = [str(SURGEON), "extract", str(checkpoint), "--layer", "-1", "--dry-run", "--json"]
    plan: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return plan
