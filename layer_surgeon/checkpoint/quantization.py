"""Detect the quantisation of a checkpoint from its config and its tensor names."""

from collections.abc import Iterable, Mapping
from typing import Any

from layer_surgeon.checkpoint.stack import text_config

# Methods that store 8-bit floats and scales, whose products are the plain weights. If a method has several formats, the
# value is the setting that identifies the FP8 one.
_FP8_METHODS = {
    "fp8": None,
    "fbgemm_fp8": None,
    "compressed-tensors": ("format", "float-quantized"),
    "modelopt": ("quant_algo", "FP8"),
}
# Name endings of packed weights. They are needed because some checkpoints keep their settings in a separate file
# (quantize_config.json of older GPTQ, hf_quant_config.json of modelopt) and not in config.json.
_PACKED_ENDINGS = {
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
    """Return the quantisation settings in a config; None if there are none."""
    for section in (config, text_config(config)):
        settings = section.get("quantization_config") or section.get("compression_config")
        if isinstance(settings, Mapping):
            return settings
    return None


def describe_quantization(config: Mapping[str, Any]) -> str | None:
    """Describe the quantisation method in a config, such as `gptq, 4 bits`; None if there is none."""
    settings = quantization_config(config)
    if settings is None:
        return None
    bits = settings.get("bits")
    method = str(settings.get("quant_method") or "unnamed method")
    condition = _FP8_METHODS.get(method)
    format_name = None if condition is None else settings.get(condition[0])
    described = f"{method} ({format_name})" if isinstance(format_name, str) else method
    return f"{described}, {bits} bits" if bits else described


def describe_packing(names: Iterable[str]) -> str | None:
    """Return the quantisation method that uses such tensor names; None if the names are those of plain weights."""
    for name in names:
        for ending, method in _PACKED_ENDINGS.items():
            if name.endswith(ending):
                return method
    return None


def is_fp8(config: Mapping[str, Any]) -> bool:
    """Return True if the weights are 8-bit floats with scales, as in the FP8 releases of Llama, DeepSeek and Qwen."""
    settings = quantization_config(config)
    if settings is None:
        return False
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _FP8_METHODS:
        return False
    condition = _FP8_METHODS[method]
    return condition is None or settings.get(condition[0]) == condition[1]


def block_sizes(config: Mapping[str, Any]) -> list[Any]:
    """Return the rows and columns per scale in a config, for `fp8` and for each compressed-tensors group.

    Values may be None or invalid, because the config is not checked.
    """
    settings = quantization_config(config) or {}
    groups = settings.get("config_groups")
    weights = [
        group["weights"]
        for group in (groups.values() if isinstance(groups, Mapping) else ())
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
    ]
    return [
        settings.get("weight_block_size"),
        *(weights_settings.get("block_structure") for weights_settings in weights),
    ]


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the same model with plain weights."""
    quantization_keys = ("quantization_config", "compression_config")
    plain = {name: value for name, value in config.items() if name not in quantization_keys}
    for name, value in plain.items():
        if isinstance(value, Mapping) and any(key in value for key in quantization_keys):
            plain[name] = {key: nested_value for key, nested_value in value.items() if key not in quantization_keys}
    return plain
