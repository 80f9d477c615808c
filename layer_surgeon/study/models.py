"""Builds the model of an arm, ready for training."""

from typing import Any

from transformers import set_seed
from transformers.models.auto.configuration_auto import model_type_to_module_name

from layer_surgeon.donor import DonorLayer, DonorStack
from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.donor_states import StateCache
from layer_surgeon.graft import GraftTokenizer, graft_layer
from layer_surgeon.graft.part_tokenizers import load_donor_tokenizer, load_part_tokenizer
from layer_surgeon.study.arms import BLOCKS, Arm
from layer_surgeon.study.controls import control_model, permute_weights
from layer_surgeon.study.donor_layers import layer_folder, open_layer
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import Cell
from layer_surgeon.workspace import DONOR_STATES


def build_model(arm: Arm, task: str, seed: int, folder: StudyFolder) -> Any:
    """Build the model of an arm, with its new weights drawn from the seed.

    Raises:
        ConfigError: The arm can't be built, or a package is missing.
        GraftError, ArtifactError, SourceError: As in `graft_layer`.
    """
    set_seed(seed)
    if arm.control is not None and arm.donor is None:
        raise ConfigError(
            f"The control {arm.name} needs a donor, and has none. Name a donor in the plan, or leave the arm out."
        )
    if arm.donor is None:
        model = graft_layer(arm.host, None, task=task, **_settings(arm))
    elif arm.control in BLOCKS:
        width = int(DonorLayer.from_pretrained(str(open_layer(arm.donor, folder).path)).hidden_size)
        return control_model(arm.host, arm.control, width, task=task, **arm.graft)
    elif arm.control == "cut":
        model = graft_layer(str(layer_folder(arm.donor, folder)), None, task=task, **_settings(arm))
    else:
        donor: Any = open_layer(arm.donor, folder)
        if arm.control == "permuted":
            path = str(donor.path)
            is_stack = arm.donor.form == "stack"
            donor = DonorStack.from_pretrained(path) if is_stack else DonorLayer.from_pretrained(path)
            donor = permute_weights(donor, seed)
        model = graft_layer(arm.host, donor, task=task, **_settings(arm))
    if arm.lora is not None:
        _add_lora(model, dict(arm.lora))
    return model


def _settings(arm: Arm) -> dict[str, Any]:
    # The arms of a study are the paper's unless they say otherwise, so that arms and studies can be compared.
    return {"projection_init": "default", **arm.graft}


def tokenizer_of(arm: Arm, folder: StudyFolder) -> Any:
    """Return the tokenizer of an arm, or the model that it belongs to."""
    if arm.donor is not None and arm.control == "cut":
        return str(layer_folder(arm.donor, folder))
    if arm.donor is not None and arm.graft.get("donor_tokens") == "own":
        donor = load_donor_tokenizer(layer_folder(arm.donor, folder))
        return GraftTokenizer.from_tokenizers(load_part_tokenizer("host", arm.host), donor)
    return arm.host


def states_of(cell: Cell, folder: StudyFolder) -> StateCache:
    """Return where the states of a cell's donor are kept, and whose states each text gets.

    Random and permuted weights are the cell's own, so their states are removed with the cell's other files.
    """
    is_shared = cell.arm.control != "permuted" and cell.arm.graft.get("donor_init") != "random"
    return StateCache(
        folder=folder.path(DONOR_STATES) if is_shared else folder.run(cell.id, f".{DONOR_STATES}"),
        shuffle_seed=cell.seed if cell.arm.control == "shuffled" else None,
    )


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
    try:
        inject_adapter_in_model(LoraConfig(**settings), model.host)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The lora settings of an arm don't fit its host: {error}") from error
