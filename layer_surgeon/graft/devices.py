"""Place the parts of a graft on devices, when it is loaded with a `device_map`."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate import infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import get_balanced_memory, get_max_memory

from layer_surgeon.graft.model_config import SurgeonGraftConfig

if TYPE_CHECKING:
    from layer_surgeon.graft.modeling import GraftedModel

_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")

Device = str | int | torch.device


def plan_devices(
    model_class: Any, config: SurgeonGraftConfig, kwargs: dict[str, Any]
) -> tuple[dict[str, Any], Device | None]:
    """Choose a device for the donor layer, which is loaded after the other parts.

    Args:
        model_class: The task's class.
        config: The graft's config.
        kwargs: Keyword arguments of from_pretrained; only device_map and max_memory are used.

    Returns:
        The keyword arguments with the donor removed from the device map, and the donor's device. None means the device
        of the other parts.
    """
    device_map = kwargs.get("device_map")
    if isinstance(device_map, str) and device_map in _AUTOMATIC:
        device_map = _spread(model_class, config, device_map, kwargs.get("max_memory"))
    if not isinstance(device_map, dict):
        return kwargs, None
    other_parts = {name: device for name, device in device_map.items() if name.partition(".")[0] != "donor"}
    device = device_map.get("donor", device_map.get(""))
    # The donor layer runs on the device that stores it, so it goes into memory instead of onto the disk.
    return {**kwargs, "device_map": other_parts}, "cpu" if device == "disk" else device


def place_donor(model: "GraftedModel", device: Device | None) -> None:
    """Move the donor layer to its device, and have its inputs moved there in each pass."""
    if model.donor is None or model.proj_out is None:
        return
    if device is None:
        neighbour = model.proj_in or model.proj_out
        hook = getattr(neighbour, "_hf_hook", None)
        # Offloaded weights are on the meta device between passes, so use the device that they run on.
        device = getattr(hook, "execution_device", None) or neighbour.weight.device
    model.donor.to(device)
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        add_hook_to_module(model.donor, AlignDevicesHook(execution_device=device))
        model.hf_device_map["donor"] = device


def _spread(
    model_class: Any, config: SurgeonGraftConfig, strategy: str, max_memory: dict[Any, Any] | None
) -> dict[str, Device]:
    with torch.device("meta"):
        model = model_class(config)
    model.tie_weights()
    unsplit = sorted(model._no_split_modules)
    if strategy == "sequential":
        memory = get_max_memory(max_memory)
    else:
        memory = get_balanced_memory(
            model, max_memory=max_memory, no_split_module_classes=unsplit, low_zero=strategy == "balanced_low_0"
        )
    return infer_auto_device_map(model, max_memory=memory, no_split_module_classes=unsplit)  # type: ignore[no-any-return]  # accelerate is untyped here
