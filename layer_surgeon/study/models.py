"""Builds the model of an arm, ready for training."""

from typing import Any

from transformers import set_seed
from transformers.models.auto.configuration_auto import model_type_to_module_name

from layer_surgeon.donor import DonorLayer
from layer_surgeon.errors import ConfigError
from layer_surgeon.graft import graft_layer
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.controls import control_model
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.prepare import open_layer


def build_model(arm: Arm, task: str, seed: int, folder: StudyFolder) -> Any:
    """Build the model of an arm, with its new weights drawn from the seed.

    Raises:
        ConfigError: The arm can't be built, or a package is missing.
        GraftError, ArtifactError, SourceError: As in `graft_layer`.
    """
    set_seed(seed)
    if arm.control is not None:
        if arm.donor is None:
            raise ConfigError(
                f"The control {arm.name} takes its width from a donor, and has none. Name a donor in the plan."
            )
        width = int(DonorLayer.from_pretrained(str(open_layer(arm.donor, folder).path)).hidden_size)
        return control_model(arm.host, arm.control, width, task=task, **arm.graft)
    donor = None if arm.donor is None else open_layer(arm.donor, folder)
    # The arms of a study are the paper's unless they say otherwise, so that arms and studies can be compared.
    model = graft_layer(arm.host, donor, task=task, **{"projection_init": "default", **arm.graft})
    if arm.lora is not None:
        _add_lora(model, dict(arm.lora))
    return model


def _add_lora(model: Any, settings: dict[str, Any]) -> None:
    """Add LoRA to the host. This freezes the host's own weights; the head is trained in full.

    The adapters are injected into the host instead of wrapping the model, so a checkpoint contains all weights.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
    except ImportError as error:
        raise ConfigError("The arm lora needs peft: pip install peft") from error
    if "target_modules" not in settings:
        # peft's default for the family (for BERT: query and value, as in the LoRA paper).
        family = model_type_to_module_name(model.host.config.model_type)
        settings["target_modules"] = TARGETS.get(family, TARGETS.get(model.host.config.model_type, "all-linear"))
    inject_adapter_in_model(LoraConfig(**settings), model.host)
