"""Adapters (peft: LoRA and its kin) on a grafted model: on the host, and the graft's fresh parts trained whole."""

import warnings
from typing import TYPE_CHECKING, Any

from layer_surgeon.errors import GraftError
from layer_surgeon.graft.projection import ScaledLinear

if TYPE_CHECKING:
    from layer_surgeon.graft.modeling import GraftedModel

# The parts that start from nothing. An adapter beside random weights that stay as they are would learn little.
_FRESH = ("proj_in", "proj_out", "residual_gate", "head")


def adapter_settings(model: "GraftedModel") -> dict[str, Any]:
    """How adapters go onto a grafted model: `peft.LoraConfig(r=8, **adapter_settings(model))`.

    Args:
        model: The grafted model.

    Returns:
        target_modules: all linear layers of the host. exclude_modules: everything that is not the host's; the frozen
        donor layer stays as it is, and out of the adapter's file. modules_to_save: projections, gate and head, which
        start from random weights and are trained, and stored with the adapter, whole.
    """
    fresh = [name for name in _FRESH if getattr(model, name, None) is not None]
    return {"target_modules": "all-linear", "exclude_modules": r"(?!host\.).*", "modules_to_save": fresh}


def check_adapters(model: "GraftedModel") -> None:
    """See, before training, that adapters left the frozen donor layer alone, and that fresh parts are trained.

    Raises:
        GraftError: An adapter was put into the donor layer, or on a projection with a scale.
    """
    if not getattr(model, "peft_config", None):
        return
    advice = "LoraConfig(..., **layer_surgeon.graft.adapter_settings(model))"
    if model.donor is not None and not model.config.settings.train_donor:
        trained = [name for name, parameter in model.donor.named_parameters() if parameter.requires_grad]
        if trained:
            raise GraftError(
                f"The adapter has {len(trained)} weights in the donor layer, such as {trained[0]}; but the donor layer "
                "is frozen, and lies in no checkpoint. Leave it out with exclude_modules=r'donor\\..*', or take all "
                f"settings from {advice}."
            )
    for name in ("proj_in", "proj_out"):
        if isinstance(getattr(getattr(model, name), "base_layer", None), ScaledLinear):
            raise GraftError(
                f"There is an adapter on {name}, whose answer is multiplied by a fixed number (projection_init "
                f"matched): merged, it would be multiplied too. Train it whole with modules_to_save=[{name!r}], or "
                f"take all settings from {advice}."
            )
    idle = [
        name
        for name in _FRESH
        if (part := getattr(model, name, None)) is not None and not any(p.requires_grad for p in part.parameters())
    ]
    if idle:
        warnings.warn(
            f"With this adapter {', '.join(idle)} stay as they are. In a new graft their weights are random: train "
            f"them with modules_to_save={idle}, or take all settings from {advice}.",
            UserWarning,
            stacklevel=3,
        )
