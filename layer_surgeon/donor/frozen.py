"""`FrozenDonor`: what `DonorLayer` and `DonorStack` have in common: their files, and that they stay frozen."""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from layer_surgeon._folders import expand_home
from layer_surgeon._io import new_path
from layer_surgeon.donor.config import SurgeonDonorConfig
from layer_surgeon.donor.files import (
    choose_dtype,
    copy_papers,
    describe_saved,
    find_weights,
    read_config,
    read_weights,
)

# Keyword arguments of from_pretrained that say where the files are.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# AutoModel passes these too. Ignoring trust_remote_code is deliberate: code from a repo never runs.
_IGNORED_ARGUMENTS = ("_commit_hash", "_from_auto", "_from_pipeline", "adapter_kwargs", "trust_remote_code")


class FrozenDonor(PreTrainedModel):  # type: ignore[misc]  # transformers is untyped here
    """A part of a large language model, made frozen and in eval mode.

    It stays so inside of a model that is trained, until `unfreeze`.

    Attributes:
        weights_file: The file that the weights were loaded from; None if they were not loaded from a file.
    """

    config_class = SurgeonDonorConfig
    supports_gradient_checkpointing = True
    # The family's own class makes the final decision. Without these, transformers would reject the request here.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    weights_file: Path | None = None
    _frozen = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: SurgeonDonorConfig | None = None,
        dtype: torch.dtype | str | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load an artifact, frozen and in eval mode.

        Args:
            pretrained_model_name_or_path: The artifact's folder, or a Hub repo id.
            model_args: Not used.
            config: Replaces the artifact's own config.
            dtype: Element type of the weights. None keeps the artifact's.
            output_loading_info: Also return the (empty) lists of missing and unexpected tensors, as transformers does.
            kwargs: Arguments for the Hub (`revision`, `token`, `cache_dir`, ...). Others are passed to the family's
                `from_pretrained` (`device_map`, `attn_implementation`).

        Raises:
            ArtifactError: The folder or repo is not such an artifact, or its tensors don't match its config.
            SourceError: The folder or repo can't be read.
            UnsupportedArchitectureError: The donor's family is not supported. The message says why.
        """
        path = expand_home(pretrained_model_name_or_path)
        hub_arguments = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        settings = {name: value for name, value in kwargs.items() if name not in _IGNORED_ARGUMENTS}
        # Also if a config is passed: the Auto classes make it without any check.
        stored = read_config(path, hub_arguments)
        config = stored if config is None else deepcopy(config)
        cls._check_kind(config, path)
        dtype = dtype or settings.pop("torch_dtype", None)
        file = find_weights(path, hub_arguments)
        tensors = read_weights(file, torch.float32 if dtype in (torch.float32, "float32") else None)
        settings["dtype"] = choose_dtype(dtype, config, tensors)
        if config._attn_implementation is not None:
            settings.setdefault("attn_implementation", config._attn_implementation)
        config.name_or_path = path
        donor = cls._from_artifact(config, tensors, settings)
        donor.weights_file = file
        donor.probe()
        if output_loading_info:
            return donor, {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
        return donor

    @classmethod
    def from_config(cls, config: SurgeonDonorConfig, dtype: torch.dtype | str | None = None) -> Self:
        """Make the same modules with random weights from the family's own initialisation, frozen and in eval mode.

        Args:
            config: The donor's config and the indices of the layers. It is not modified.
            dtype: Element type of the weights. None means the config's, or float32 if it has none.

        Raises:
            ArtifactError: The config doesn't describe such a donor.
            UnsupportedArchitectureError: The donor's family is not supported. The message says why.
        """
        config = deepcopy(config)
        # These describe the donor's weights, which the new modules don't have.
        config.sha256, config.source, config.name_or_path = None, None, ""
        donor = cls._from_config(config, dtype=choose_dtype(dtype, config, {}))
        donor.probe()
        return donor  # type: ignore[no-any-return]  # transformers is untyped here

    @classmethod
    @abstractmethod
    def _check_kind(cls, config: SurgeonDonorConfig, path: str) -> None:
        """Refuse an artifact of the other kind."""

    @classmethod
    @abstractmethod
    def _from_artifact(cls, config: SurgeonDonorConfig, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> Any:
        """Make it from the tensors of an artifact, by name, and arguments for the family's `from_pretrained`."""

    @abstractmethod
    def _artifact_tensors(self) -> dict[str, Tensor]:
        """The tensors of its artifact, by name."""

    @abstractmethod
    def probe(self) -> Any:
        """Find out how to run it. It must have its weights by then."""

    def is_stored_in(self, file: Path) -> bool:
        """Whether an artifact's file of weights has exactly these weights, converted to their element types.

        Weights that are offloaded to the disk can't have changed, and are not compared.
        """
        tensors = self._artifact_tensors()
        with safe_open(file, framework="pt") as stored:
            return set(stored.keys()) == tensors.keys() and all(
                tensor.is_meta or torch.equal(stored.get_tensor(name).to(tensor.dtype), tensor.cpu())
                for name, tensor in tensors.items()
            )

    def unfreeze(self) -> Self:
        """Make the weights trainable, and let `train` switch to training mode (dropout, if the family has it)."""
        self._frozen = False
        self.requires_grad_(True)
        return self

    def freeze(self) -> Self:
        """Undo `unfreeze`."""
        self._frozen = True
        self.requires_grad_(False)
        return self.eval()  # type: ignore[no-any-return]  # transformers is untyped here

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, but stay in eval mode if frozen."""
        return super().train(mode and not self._frozen)  # type: ignore[no-any-return]  # transformers is untyped here

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write an artifact: one file of weights, named as in the donor's checkpoint.

        Sets the config's `sha256` to the digest of the new file. Copies the model card and the licence from the folder
        that the donor was loaded from.

        Args:
            save_directory: The folder to write; created if it doesn't exist.
            is_main_process: Write nothing if False.
            push_to_hub: Also upload the artifact. `kwargs` are then passed to `push_to_hub`, such as `repo_id`.
            kwargs: Without an upload, accepted for compatibility with transformers and ignored (`max_shard_size`, ...).
        """
        if not is_main_process:
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = self._artifact_tensors()
        # The file that is there may have another name too: a graft's donor layer is linked to the artifact's.
        with new_path(folder / SAFE_WEIGHTS_NAME) as weights:
            save_file(tensors, weights, metadata={"format": "pt"})
        self.config.source = describe_saved(self.config.source, tensors)
        with (folder / SAFE_WEIGHTS_NAME).open("rb") as file:
            self.config.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.config.architectures = [type(self).__name__]
        self.config.dtype = str(self.dtype).removeprefix("torch.")
        self.config.save_pretrained(folder)
        copy_papers(self.weights_file, folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move or convert the module, but keep the element type of non-persistent buffers such as rotary embeddings.

        These buffers are not in a checkpoint, so a lossy conversion could not be undone. The family computes them in
        float32, regardless of the element type of its weights.
        """
        non_persistent = [
            (module, name, module._buffers[name])
            for module in self.modules()
            for name in sorted(module._non_persistent_buffers_set)
            if module._buffers.get(name) is not None
        ]
        super()._apply(fn, recurse)
        for module, name, buffer in non_persistent:
            moved = module._buffers[name]
            if moved is not None:
                # A meta buffer has no values to keep, but it must keep its type for when it gets some.
                module._buffers[name] = moved.to(buffer.dtype) if buffer.is_meta else buffer.to(moved.device)
        return self


def family_of(config: SurgeonDonorConfig) -> PretrainedConfig:
    """The donor's config, of the family's own class, with the attention implementation that was asked for."""
    family = config.family_config()
    if config._attn_implementation is not None:
        family._attn_implementation = config._attn_implementation
    return family
