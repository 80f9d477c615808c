"""Train with FSDP, which shards the weights over the processes, and save and load checkpoints of sharded models.

The frozen donor layer is not sharded: as with DDP, every process has all of it, and no checkpoint contains it. The FSDP
checkpoints of transformers would contain it twice.
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
    """A `Trainer` that does not shard the frozen donor layer. Without FSDP, it behaves like `Trainer`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.is_fsdp_enabled:
            plan_sharding(self.accelerator.state.fsdp_plugin, self.model)

    def whole_weights(self) -> dict[str, Any] | None:
        """Gather all weights except the frozen donor's in the main process; None if the weights are not sharded.

        All processes must call this method.
        """
        if not self.is_fsdp_enabled:
            return None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, Any] = get_model_state_dict(self.model, options=options)
        donor = frozen_donor(self.accelerator.unwrap_model(self.model))
        return {name: value for name, value in weights.items() if name not in donor}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights, and gather them first if they are sharded."""
        weights = self.whole_weights()
        if weights is None:
            super().save_model(output_dir, _internal_call)
        else:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # The same as the base class, except that it would also write a second file with all weights.
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
        # Every process reads the file and keeps its shard.
        weights: dict[str, Any] = load_file(Path(folder) / SAFE_WEIGHTS_NAME)
        options = StateDictOptions(full_state_dict=True, strict=False)
        self._issue_warnings_after_load(set_model_state_dict(self.model, weights, options=options))


def plan_sharding(plugin: Any, model: Any) -> None:
    """Configure the FSDP plugin: ignore the frozen donor and, by default, wrap each layer of the host.

    Raises:
        ConfigError: The plugin is for FSDP version 1, or the model can't be sharded.
    """
    if plugin.fsdp_version != 2:
        raise ConfigError(f"fsdp_version is {plugin.fsdp_version}. Set it to 2 in the launcher's configuration.")
    if is_adapted(model):
        raise ConfigError("train_host is 'lora', which does not work with FSDP. Use a configuration with DDP instead.")
    if frozen_donor(model):
        plugin.ignored_modules = [model.donor]
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(model)


def check_readable(plugin: Any) -> None:
    """Reject checkpoint types that torch.distributed.checkpoint reads with pickle, which can run code in the file.

    Raises:
        ConfigError: The launcher's configuration uses such a checkpoint type.
    """
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise ConfigError(
            f"fsdp_state_dict_type is {plugin.state_dict_type.name}, but a run can only be resumed with "
            "FULL_STATE_DICT, because reading other checkpoints can run code in them. Start a new run with "
            "fsdp_state_dict_type: FULL_STATE_DICT in the launcher's configuration."
        )


def layer_classes(model: Any) -> list[str]:
    """The class names of the host's layers, except classes that contain the token embeddings.

    accelerate wraps the embeddings itself, and torch can't wrap one module inside another. (BERT's `_no_split_modules`
    includes BertEmbeddings.)
    """
    layer_names = set(model._no_split_modules or ()) - {"DonorLayer", "DonorStack"}
    embeddings = model.get_input_embeddings()
    layers = [module for module in model.modules() if type(module).__name__ in layer_names]
    excluded = {type(layer) for layer in layers if any(part is embeddings for part in layer.modules())}
    return sorted({type(layer).__name__ for layer in layers if type(layer) not in excluded})
