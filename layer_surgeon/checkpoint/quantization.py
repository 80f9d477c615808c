"""Whether a checkpoint's weights are plain numbers, as its config and its tensors' names say."""

from collections.abc import Iterable, Mapping
from typing import Any

from layer_surgeon.checkpoint.stack import text_config

# Methods whose weights are 8-bit floats with scales beside them, and plain numbers once multiplied: by their name, and
# by what the setting next to it says where one name stands for several.
_FP8 = {
    "fp8": None,
    "fbgemm_fp8": None,
    "compressed-tensors": ("format", "float-quantized"),
    "modelopt": ("quant_algo", "FP8"),
}
# What the tensors of packed weights are called. Some checkpoints keep their settings in a file of their own
# (quantize_config.json of older GPTQ, hf_quant_config.json of modelopt), so that config.json says nothing.
_PACKED = {
    ".qweight": "gptq or awq",
    ".weight_packed": "packed compressed-tensors",
    ".weight_scale_2": "modelopt, NVFP4",
    "_blocks": "mxfp4",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".W_q": "hqq",
    ".codebooks": "aqlm",
}


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The part of a config that tells how the weights were quantised; None where they are plain."""
    for part in (config, text_config(config)):
        settings = part.get("quantization_config") or part.get("compression_config")
        if isinstance(settings, Mapping):
            return settings
    return None


def describe_quantization(config: Mapping[str, Any]) -> str | None:
    """The quantisation method that a config names, such as `gptq, 4 bits`; None where there is none."""
    settings = quantization_config(config)
    if settings is None:
        return None
    bits = settings.get("bits")
    method = str(settings.get("quant_method") or "unnamed method")
    condition = _FP8.get(method)
    kind = None if condition is None else settings.get(condition[0])
    described = f"{method} ({kind})" if isinstance(kind, str) else method
    return f"{described}, {bits} bits" if bits else described


def describe_packing(names: Iterable[str]) -> str | None:
    """The quantisation method that packs weights into tensors of such names; None where the names are plain."""
    for name in names:
        for ending, method in _PACKED.items():
            if name.endswith(ending):
                return method
    return None


def is_fp8(config: Mapping[str, Any]) -> bool:
    """Whether the weights are 8-bit floats with scales: the FP8 releases of Llama, DeepSeek, Qwen and others."""
    settings = quantization_config(config)
    if settings is None:
        return False
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _FP8:
        return False
    condition = _FP8[method]
    return condition is None or settings.get(condition[0]) == condition[1]


def block_sizes(config: Mapping[str, Any]) -> list[Any]:
    """The rows and columns that have one scale, as a config says: of `fp8`, and of each compressed-tensors group."""
    settings = quantization_config(config) or {}
    groups = settings.get("config_groups")
    weights = [
        group["weights"]
        for group in (groups.values() if isinstance(groups, Mapping) else ())
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
    ]
    return [settings.get("weight_block_size"), *(part.get("block_structure") for part in weights)]


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the same model with plain weights."""
    names = ("quantization_config", "compression_config")
    plain = {name: value for name, value in config.items() if name not in names}
    for name, value in plain.items():
        if isinstance(value, Mapping) and any(key in value for key in names):
            plain[name] = {key: inner for key, inner in value.items() if key not in names}
    return plain
