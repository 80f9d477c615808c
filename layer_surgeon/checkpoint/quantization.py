"""Whether a checkpoint's weights are plain numbers, as its config says."""

from collections.abc import Mapping
from typing import Any

from layer_surgeon.checkpoint.stack import text_config


def describe_quantization(config: Mapping[str, Any]) -> str | None:
    """The quantisation method that a config names, such as `gptq, 4 bits`; None where there is none."""
    for part in (config, text_config(config)):
        settings = part.get("quantization_config") or part.get("compression_config")
        if isinstance(settings, Mapping):
            bits = settings.get("bits")
            method = str(settings.get("quant_method") or "unnamed method")
            return f"{method}, {bits} bits" if bits else method
    return None
