"""Which settings of peft's `LoraConfig` an arm of a study may have: a plan may come from a stranger."""

from collections.abc import Mapping
from typing import Any

from layer_surgeon.errors import ConfigError

# The settings of peft's LoraConfig that only change the adapters. Other settings import a module by its name
# (megatron_core), or load weights and data (loftq_config, eva_config, arrow_config).
_LORA = (
    *("r", "lora_alpha", "lora_dropout", "bias", "lora_bias", "use_rslora", "use_dora", "init_lora_weights"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "fan_in_fan_out"),
)
_LORA_INITS = (True, False, "gaussian", "orthogonal", "olora", "pissa")


def check_lora(arm: str, settings: Mapping[str, Any]) -> None:
    """Check the settings of an arm's LoRA.

    Raises:
        ConfigError: A setting is unknown, or the way to initialise the adapters is.
    """
    unknown = sorted(set(settings) - set(_LORA))
    if unknown:
        raise ConfigError(
            f"The arm {arm} has an unknown setting {unknown[0]!r} under lora. Settings are: {', '.join(_LORA)}."
        )
    init = settings.get("init_lora_weights", True)
    if init not in _LORA_INITS:
        raise ConfigError(
            f"init_lora_weights of the arm {arm} is {init!r}; it must be one of true, false, "
            f"{', '.join(str(name) for name in _LORA_INITS[2:])}."
        )
