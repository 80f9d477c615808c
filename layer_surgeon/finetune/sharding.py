"""Weights that are spread over the processes (FSDP, `accelerate launch`): what is spread, and checkpoints of it.

The frozen donor layer is not: every process has all of it, as under DDP, and it lies in no checkpoint. What
transformers writes for FSDP by itself would hold it twice.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import StateDictType
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.parts import is_adapted
from layer_surgeon.finetune.processes import frozen_donor


class ShardedTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """`Trainer` whose FSDP leaves the frozen donor layer alone; without FSDP it is `Trainer`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.is_fsdp_enabled:
            plan_sharding(self.accelerator.state.fsdp_plugin, self.model)

    def whole_weights(self) -> dict[str, Any] | None:
        """All weights but the frozen donor's, in the first process's memory; None if they are not spread.

        All processes must call it.
        """
        if not self.is_fsdp_enabled:
            return None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, Any] = get_model_state_dict(self.model, options=options)
        donor = frozen_donor(self.accelerator.unwrap_model(self.model))
        return {name: value for name, value in weights.items() if name not in donor}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights; where they are spread, gather them first."""
        weights = self.whole_weights()
        if weights is None:
            super().save_model(output_dir, _internal_call)
        else:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # As it does, but for a second file of all weights.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.is_fsdp_enabled:
            check_readable(self.accelerator.state.fsdp_plugin)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            self._load_whole_weights(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            self._load_whole_weights(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _load_whole_weights(self, folder: str) -> None:
        # Every process reads the file and keeps its share.
        weights: dict[str, Any] = load_file(Path(folder) / SAFE_WEIGHTS_NAME)
        options = StateDictOptions(full_state_dict=True, strict=False)
        self._issue_warnings_after_load(set_model_state_dict(self.model, weights, options=options))


def plan_sharding(plugin: Any, model: Any) -> None:
    """Say what FSDP spreads, where the launcher's configuration doesn't: one piece for each of the host's layers.

    Raises:
        ConfigError: It is the old FSDP, or the model can't be spread.
    """
    if plugin.fsdp_version != 2:
        raise ConfigError(f"fsdp_version is {plugin.fsdp_version}; it must be 2, in the launcher's configuration.")
    if is_adapted(model):
        raise ConfigError("train_host is 'lora', which doesn't go with FSDP. Take a configuration without it (DDP).")
    if frozen_donor(model):
        plugin.ignored_modules = [model.donor]
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(model)


def check_readable(plugin: Any) -> None:
    """Refuse a kind of checkpoint that torch.distributed.checkpoint reads with pickle, which runs what is in it.

    Raises:
        ConfigError: The launcher's configuration asks for that kind.
    """
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise ConfigError(
            f"fsdp_state_dict_type is {plugin.state_dict_type.name}; a run can only be resumed with FULL_STATE_DICT, "
            "since reading the other kinds of checkpoints runs code that is in them. Start a new run with "
            "fsdp_state_dict_type: FULL_STATE_DICT in the launcher's configuration."
        )


def layer_classes(model: Any) -> list[str]:
    """Names of the classes of the host's layers; what holds the token embeddings is none.

    accelerate makes a piece of the embeddings by itself, and of one within another torch can't (BertEmbeddings is
    among BERT's classes that are not to be split).
    """
    named = set(model._no_split_modules or ()) - {"DonorLayer"}
    embeddings = model.get_input_embeddings()
    found = [module for module in model.modules() if type(module).__name__ in named]
    outer = {type(module) for module in found if any(part is embeddings for part in module.modules())}
    return sorted({type(module).__name__ for module in found if type(module) not in outer})
