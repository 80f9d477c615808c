"""peft adapters (LoRA and others) on a grafted model: on the host only; new parts of the graft are trained whole."""

import warnings
from typing import TYPE_CHECKING, Any

from layer_surgeon.errors import GraftError
from layer_surgeon.graft.projection import ScaledLinear

if TYPE_CHECKING:
    from layer_surgeon.graft.modeling import GraftedModel

# Parts that start with new weights. An adapter next to frozen random weights would learn little.
_NEW_PARTS = ("proj_in", "donor_norm", "proj_out", "proj_out_norm", "residual_gate", "head")


def adapter_settings(model: "GraftedModel") -> dict[str, Any]:
    """Return peft settings for a grafted model: `peft.LoraConfig(r=8, **adapter_settings(model))`.

    Args:
        model: The grafted model.

    Returns:
        target_modules: all linear layers. exclude_modules: everything outside the host, so a frozen donor layer is not
        in the adapter's file. modules_to_save: projections, norms, gate and head; they start with new
        weights, so they are trained whole and stored with the adapter; and the donor layer of a graft made with
        `train_donor`.
    """
    parts = [name for name in _NEW_PARTS if getattr(model, name, None) is not None]
    if model.donor is not None and model.config.settings.train_donor:
        parts.append("donor")
    return {"target_modules": "all-linear", "exclude_modules": r"(?!host\.).*", "modules_to_save": parts}


def check_adapters(model: "GraftedModel") -> None:
    """Check before training that no adapter is in the frozen donor layer, and warn if new parts are not trained.

    Raises:
        GraftError: An adapter is in the frozen donor layer, or on a projection with a scale.
    """
    if not getattr(model, "peft_config", None):
        return
    advice = "LoraConfig(..., **layer_surgeon.graft.adapter_settings(model))"
    if model.donor is not None and model.config.frozen_donor is not None:
        trained = [name for name, parameter in model.donor.named_parameters() if parameter.requires_grad]
        if trained:
            raise GraftError(
                f"The adapter has {len(trained)} weights in the donor layer, such as {trained[0]}, but the donor layer "
                "is frozen and not stored in checkpoints. Leave it out with exclude_modules=r'donor\\..*', or take all "
                f"settings from {advice}."
            )
    for name in ("proj_in", "proj_out"):
        if isinstance(getattr(getattr(model, name), "base_layer", None), ScaledLinear):
            raise GraftError(
                f"There is an adapter on {name}, whose output is multiplied by a fixed scale (projection_init "
                "matched). Merging would scale the adapter too, and change the result. Train the projection whole with "
                f"modules_to_save=[{name!r}], or take all settings from {advice}."
            )
    frozen_parts = [
        name
        for name in _NEW_PARTS
        if (part := getattr(model, name, None)) is not None and not any(p.requires_grad for p in part.parameters())
    ]
    if frozen_parts:
        warnings.warn(
            f"This adapter doesn't train {', '.join(frozen_parts)}. In a new graft their weights are random. Train "
            f"them with modules_to_save={frozen_parts}, or take all settings from {advice}.",
            UserWarning,
            stacklevel=3,
        )
