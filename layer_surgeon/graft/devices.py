"""Which part of a graft lies on which device, when it is loaded with a `device_map`."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate import infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import get_balanced_memory, get_max_memory

from layer_surgeon.graft.configuration import SurgeonGraftConfig

if TYPE_CHECKING:
    from layer_surgeon.graft.modeling import GraftedModel

_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")

Device = str | int | torch.device


def plan_devices(
    model_class: Any, config: SurgeonGraftConfig, kwargs: dict[str, Any]
) -> tuple[dict[str, Any], Device | None]:
    """Choose a place for the donor layer, which transformers doesn't see while it loads the rest.

    Args:
        model_class: The task's class.
        config: The graft's.
        kwargs: Of from_pretrained; those about devices are read.

    Returns:
        The keyword arguments without what is said of the donor, and the donor's device; None: the device of the rest.
    """
    device_map = kwargs.get("device_map")
    if isinstance(device_map, str) and device_map in _AUTOMATIC:
        device_map = _spread(model_class, config, device_map, kwargs.get("max_memory"))
    if not isinstance(device_map, dict):
        return kwargs, None
    rest = {name: device for name, device in device_map.items() if name.partition(".")[0] != "donor"}
    device = device_map.get("donor", device_map.get(""))
    # A donor layer is run where it lies, so that what is not on an accelerator is in memory, not on disk.
    return {**kwargs, "device_map": rest}, "cpu" if device == "disk" else device


def place_donor(model: "GraftedModel", device: Device | None) -> None:
    """Move the donor layer to its device, and have what goes in follow it there."""
    if model.donor is None or model.proj_in is None:
        return
    if device is None:
        hook = getattr(model.proj_in, "_hf_hook", None)
        # Weights that are kept elsewhere between runs are on no device that anything can be moved to.
        device = getattr(hook, "execution_device", None) or model.proj_in.weight.device
    model.donor.to(device)
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        add_hook_to_module(model.donor, AlignDevicesHook(execution_device=device))
        model.hf_device_map["donor"] = device


def _spread(
    model_class: Any, config: SurgeonGraftConfig, way: str, max_memory: dict[Any, Any] | None
) -> dict[str, Device]:
    with torch.device("meta"):
        whole = model_class(config)
    whole.tie_weights()
    pieces = sorted(whole._no_split_modules)
    if way == "sequential":
        memory = get_max_memory(max_memory)
    else:
        memory = get_balanced_memory(
            whole, max_memory=max_memory, no_split_module_classes=pieces, low_zero=way == "balanced_low_0"
        )
    return infer_auto_device_map(whole, max_memory=memory, no_split_module_classes=pieces)  # type: ignore[no-any-return]  # accelerate is untyped here
