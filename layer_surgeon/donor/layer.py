"""`DonorLayer`: a frozen layer that computes exactly what it computed inside its model."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from layer_surgeon._io import new_path
from layer_surgeon.donor.cache import is_exact_with_cache, new_cache_layer
from layer_surgeon.donor.config import SurgeonDonorConfig
from layer_surgeon.donor.files import (
    choose_dtype,
    copy_papers,
    describe_saved,
    find_weights,
    read_config,
    read_weights,
)
from layer_surgeon.donor.influence import shorten
from layer_surgeon.donor.int8 import is_quantised, quantise
from layer_surgeon.donor.one_key import installed
from layer_surgeon.donor.probe import Traits, bidirectional_mask, count_positions, probe_layer
from layer_surgeon.donor.scaffold import Run, run_scaffold, take_layer
from layer_surgeon.donor.tensors import artifact_tensors, load_scaffold, random_scaffold, split_by_layer
from layer_surgeon.errors import ArtifactError, ConfigError, UnsupportedArchitectureError

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# AutoModel passes these too. Ignoring trust_remote_code is deliberate: code from a repo never runs.
_IGNORED_ARGUMENTS = ("_commit_hash", "_from_auto", "_from_pipeline", "adapter_kwargs", "trust_remote_code")


class DonorLayer(PreTrainedModel):  # type: ignore[misc]  # transformers is untyped here
    """One or several decoder layers of a large language model, run by the family's own code in transformers.

    It holds the weights of the chosen layers and nothing else: `layers.<k>.<name inside the layer>`, k = 0, 1, ... in
    the order of `layer_indices`. It is made frozen and in eval mode, and stays so inside of a model that is trained,
    until `unfreeze`.

    Attributes:
        layers: The layers, in the order in which they are applied.
        scaffolds: For each layer, the family's model without weights, which prepares the layer's masks and positions.
        layer_indices: Indices of the layers in the donor.
        hidden_size: Width of the layers' input and output.
        weights_file: The file that the weights were loaded from; None if they were not loaded from a file.
    """

    config_class = SurgeonDonorConfig
    base_model_prefix = "donor_layer"
    main_input_name = "hidden_states"
    supports_gradient_checkpointing = True
    # The family's own class makes the final decision. Without these, transformers would reject the request here.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: SurgeonDonorConfig, scaffolds: list[PreTrainedModel] | None = None) -> None:
        """Make layers with random weights, or take the layers out of `scaffolds`.

        Args:
            config: The donor's config and the indices of the layers.
            scaffolds: One scaffold per index in `config.layer_indices`, each with its layer. The layers are taken out.

        Raises:
            ArtifactError: `config` doesn't describe a layer.
            UnsupportedArchitectureError: The donor's family is not supported.
        """
        if scaffolds is None:
            scaffolds = [random_scaffold(_family(config), index) for index in config.layer_indices]
        if not scaffolds:
            raise ArtifactError(
                "The config has no layer_indices, so it doesn't describe a donor layer. Load it from a layer artifact, "
                "or pass donor_config and layer_indices."
            )
        super().__init__(config)
        config._attn_implementation = scaffolds[0].config._attn_implementation
        self.layer_indices = tuple(config.layer_indices)
        self.hidden_size = int(scaffolds[0].config.hidden_size)
        self.layers = nn.ModuleList(
            take_layer(scaffold, index) for scaffold, index in zip(scaffolds, self.layer_indices, strict=True)
        )
        self.scaffolds = nn.ModuleList(scaffolds)
        self.weights_file: Path | None = None
        self._traits: tuple[Traits, ...] | None = None
        self._can_cache: bool | None = None
        self._frozen = True
        self.post_init()
        self.requires_grad_(False)
        self.eval()

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
        """Load a layer artifact, frozen and in eval mode.

        Args:
            pretrained_model_name_or_path: The artifact's folder, or a Hub repo id.
            model_args: Not used.
            config: Replaces the artifact's own config.
            dtype: Element type of the weights. None keeps the artifact's.
            output_loading_info: Also return the (empty) lists of missing and unexpected tensors, as transformers does.
            kwargs: Arguments for the Hub (`revision`, `token`, `cache_dir`, ...). Others are passed to the family's
                `from_pretrained` (`device_map`, `attn_implementation`).

        Raises:
            ArtifactError: The folder or repo is not a layer artifact, or its tensors don't match its config.
            SourceError: The folder or repo can't be read.
            UnsupportedArchitectureError: The donor's family is not supported. The message says why.
        """
        path = str(pretrained_model_name_or_path)
        hub_arguments = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
        settings = {name: value for name, value in kwargs.items() if name not in _IGNORED_ARGUMENTS}
        # Also if a config is passed: the Auto classes make it without any check.
        stored = read_config(path, hub_arguments)
        config = stored if config is None else deepcopy(config)
        dtype = dtype or settings.pop("torch_dtype", None)
        file = find_weights(path, hub_arguments)
        tensors = read_weights(file, torch.float32 if dtype in (torch.float32, "float32") else None)
        settings["dtype"] = choose_dtype(dtype, config, tensors)
        if config._attn_implementation is not None:
            settings.setdefault("attn_implementation", config._attn_implementation)
        config.name_or_path = path
        donor = cls.from_tensors(config, split_by_layer(tensors, list(config.layer_indices)), **settings)
        donor.weights_file = file
        donor.probe()
        if output_loading_info:
            return donor, {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
        return donor

    @classmethod
    def from_tensors(
        cls, config: SurgeonDonorConfig, tensors_by_layer: Sequence[Mapping[str, Tensor]], **settings: Any
    ) -> Self:
        """Make the layers from tensors in memory, frozen and in eval mode.

        Args:
            config: The donor's config and the indices of the layers. Its dtype is set.
            tensors_by_layer: The tensors of each layer. Names are as in the donor's checkpoint, relative to the layer.
            settings: Arguments for the family's `from_pretrained`. `dtype` is required.

        Raises:
            ArtifactError: The tensors don't match the config.
            UnsupportedArchitectureError: The donor's family is not supported.
        """
        scaffolds = [
            load_scaffold(config.family_config(), index, tensors, position, **settings)
            for position, (index, tensors) in enumerate(zip(config.layer_indices, tensors_by_layer, strict=True))
        ]
        config.dtype = settings["dtype"]
        return cls(config, scaffolds)

    @classmethod
    def from_config(cls, config: SurgeonDonorConfig, dtype: torch.dtype | str | None = None) -> Self:
        """Make the same layers with random weights from the family's own initialisation, frozen and in eval mode.

        Args:
            config: The donor's config and the indices of the layers. It is not modified.
            dtype: Element type of the weights. None means the config's, or float32 if it has none.

        Raises:
            ArtifactError: The config doesn't describe a layer.
            UnsupportedArchitectureError: The donor's family is not supported. The message says why.
        """
        config = deepcopy(config)
        # These describe the donor's weights, which the new layers don't have.
        config.sha256, config.source, config.name_or_path = None, None, ""
        donor = cls._from_config(config, dtype=choose_dtype(dtype, config, {}))
        donor.probe()
        return donor  # type: ignore[no-any-return]  # transformers is untyped here

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        causal: bool = True,
        cache: Cache | None = None,
    ) -> Tensor:
        """Run the layers on hidden states, with the same result as inside their model.

        Args:
            hidden_states: [batch, seq, donor_hidden]. They are converted to the element type of the weights.
            attention_mask: [batch, seq], 1 for tokens and 0 for padding. With a cache, [batch, cached + seq].
            position_ids: [batch, seq]. None means 0 to seq - 1, padding included, as in the donor's own forward. With a
                cache, they start at the number of cached positions.
            causal: True: each position attends to itself and earlier positions, as in the donor, and the donor's
                sliding window applies if the layer has one. False: each position attends to every position that is not
                padding. A sliding window does not apply then, because it only limits how far back a layer looks.
            cache: From `new_cache`. It holds the positions of earlier calls, which the new ones attend to, and receives
                the new ones. Only with causal=True.

        Returns:
            [batch, seq, donor_hidden], in the element type of `hidden_states`. Values at padding are undefined.

        Raises:
            UnsupportedArchitectureError: The family can't run bidirectionally, or doesn't accept position_ids.
            ValueError: A shape is wrong, or there is a cache with causal=False.
        """
        if hidden_states.ndim != 3 or hidden_states.shape[-1] != self.hidden_size:
            raise ValueError(
                f"hidden_states has shape {list(hidden_states.shape)}, but must have shape [batch, seq, "
                f"{self.hidden_size}]. Project them to the donor's width first."
            )
        if cache is not None and not causal:
            raise ValueError("A cache needs causal=True: cached positions can't attend to new ones.")
        batch, length, _ = hidden_states.shape
        mask_shape, axes = [batch, length], "seq"
        if cache is not None and (cached := cache.get_seq_length()):
            mask_shape, axes = [batch, cached + length], "cached + seq"
        if attention_mask is not None and list(attention_mask.shape) != mask_shape:
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}, but must have shape [batch, {axes}] = "
                f"{mask_shape}, with 1 for tokens and 0 for padding."
            )
        states = hidden_states.to(self.dtype)
        mask = attention_mask if causal else bidirectional_mask(states, attention_mask)
        cache_layers = [None] * len(self.layers) if cache is None else cache.layers
        for layer, scaffold, traits, cache_layer in zip(
            self.layers, self.scaffolds, self.probe(), cache_layers, strict=True
        ):
            _check_supported(scaffold, traits, causal=causal, has_position_ids=position_ids is not None)
            positions = position_ids
            if positions is None and not causal and traits.takes_position_ids:
                positions = count_positions(states)
            run = Run(layer=layer, hidden_states=states, extras=traits.extras, cache_layer=cache_layer)
            output = run_scaffold(scaffold, run, mask, positions).output
            if not isinstance(output, Tensor):
                raise UnsupportedArchitectureError(f"{type(layer).__name__} returned no hidden states.")
            states = output
        return states.to(hidden_states.dtype)

    def probe(self, *, causal_only: bool = False) -> tuple[Traits, ...]:
        """Find out how to run each layer. The first call runs the layers, so they must have their weights by then.

        Args:
            causal_only: Don't find out whether they can run bidirectionally; they then can't. It takes less time.

        Raises:
            UnsupportedArchitectureError: A layer can't run by itself.
        """
        if self._traits is None:
            self._traits = tuple(
                probe_layer(scaffold, layer, self.hidden_size, causal_only=causal_only)
                for scaffold, layer in zip(self.scaffolds, self.layers, strict=True)
            )
            if causal_only:
                return self._traits
            for scaffold, layer, traits in zip(self.scaffolds, self.layers, self._traits, strict=True):
                shorten(scaffold, layer, traits.extras, self.hidden_size)
        return self._traits

    def new_cache(self) -> Cache | None:
        """Make an empty cache for a text that is passed in pieces: transformers' own, with one layer per donor layer.

        None if the result wouldn't be exact, because the family has no cache or the layer keeps another state. The
        first call finds that out by running the layers.
        """
        can_cache = self._can_cache
        if can_cache is None:
            can_cache = all(
                is_exact_with_cache(scaffold, layer, index, traits, self.hidden_size)
                for scaffold, layer, index, traits in zip(
                    self.scaffolds, self.layers, self.layer_indices, self.probe(), strict=True
                )
            )
            if not self.training:  # Dropout would hide what is found.
                self._can_cache = can_cache
        if not can_cache:
            return None
        return Cache(
            layers=[
                new_cache_layer(scaffold, index)
                for scaffold, index in zip(self.scaffolds, self.layer_indices, strict=True)
            ]
        )

    @property
    def one_key_shortcut(self) -> bool:
        """Whether the layers skip outputs that don't affect the result if each sequence has one position.

        False if no layer has such outputs. Set it to False to compute everything, for comparison.
        """
        return any(bool(module.one_key) for _, module in installed(self))

    @one_key_shortcut.setter
    def one_key_shortcut(self, value: bool) -> None:
        for _, module in installed(self):
            module.one_key = value

    def unfreeze(self) -> Self:
        """Make the weights trainable, and let `train` switch to training mode (dropout, if the family has it).

        Raises:
            ConfigError: The weights are 8-bit integers.
        """
        if self.int8:
            raise ConfigError("8-bit integers can't be trained. Load the layer with another dtype, such as float32.")
        self._frozen = False
        self.requires_grad_(True)
        return self

    def freeze(self) -> Self:
        """Undo `unfreeze`."""
        self._frozen = True
        self.requires_grad_(False)
        return self.eval()  # type: ignore[no-any-return]  # transformers is untyped here

    @property
    def int8(self) -> bool:
        """Whether the weights are 8-bit integers."""
        return is_quantised(self)

    def to_int8(self) -> Self:
        """Quantise the weights of linear maps to 8-bit integers with a scale per row; other weights become float32.

        This can't be undone, and the result can't be trained or saved. The artifact keeps the original weights.

        Raises:
            ConfigError: torchao is not installed.
        """
        self.freeze()
        quantise(self)
        return self

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
        """Write a layer artifact: one file of weights, named as in the donor's checkpoint.

        Sets the config's `sha256` to the digest of the new file. Copies the model card and the licence from the folder
        that the donor was loaded from.

        Args:
            save_directory: The folder to write; created if it doesn't exist.
            is_main_process: Write nothing if False.
            push_to_hub: Also upload the artifact. `kwargs` are then passed to `push_to_hub`, such as `repo_id`.
            kwargs: Without an upload, accepted for compatibility with transformers and ignored (`max_shard_size`, ...).

        Raises:
            ArtifactError: The weights are 8-bit integers.
        """
        if self.int8:
            raise ArtifactError(
                "The weights are 8-bit integers, but a layer artifact contains the original weights. "
                "Save the layer before to_int8, or copy the artifact that it was loaded from."
            )
        if not is_main_process:
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for position, (scaffold, layer, index) in enumerate(
            zip(self.scaffolds, self.layers, self.layer_indices, strict=True)
        ):
            tensors.update(artifact_tensors(scaffold, layer, index, position))
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
        # An int8 donor keeps its element types: the integers can't be converted, and its other weights stay float32.
        super()._apply(_only_moving(fn) if self.int8 else fn, recurse)
        for module, name, buffer in non_persistent:
            moved = module._buffers[name]
            if moved is not None:
                # A meta buffer has no values to keep, but it must keep its type for when it gets some.
                module._buffers[name] = moved.to(buffer.dtype) if buffer.is_meta else buffer.to(moved.device)
        return self

    def _init_weights(self, module: nn.Module) -> None:
        """Use the family's own initialisation. transformers calls this for modules whose weights were not loaded."""
        scaffold: Any = self.scaffolds[0]
        scaffold._init_weights(module)


def _only_moving(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def move(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        return result if result.dtype == tensor.dtype else tensor.to(result.device)

    return move


def _family(config: SurgeonDonorConfig) -> PretrainedConfig:
    family = config.family_config()
    if config._attn_implementation is not None:
        family._attn_implementation = config._attn_implementation
    return family


def _check_supported(scaffold: PreTrainedModel, traits: Traits, *, causal: bool, has_position_ids: bool) -> None:
    reason = traits.not_causal if causal else traits.not_bidirectional
    if reason is not None:
        direction, alternative = ("causally", "causal=False") if causal else ("bidirectionally", "causal=True")
        raise UnsupportedArchitectureError(
            f"A layer of {type(scaffold).__name__} can't run {direction}: {reason}. Run it with {alternative}, or take "
            "a donor of another family."
        )
    if has_position_ids and not traits.takes_position_ids:
        raise UnsupportedArchitectureError(
            f"{type(scaffold).__name__} doesn't accept position_ids, so positions are always 0, 1, 2, ... "
            "Leave position_ids out."
        )
