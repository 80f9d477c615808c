"""The donor layer: frozen, and exactly what it was inside its model."""

import hashlib
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from layer_surgeon._io import usual_modes
from layer_surgeon.donor.config import SurgeonDonorConfig
from layer_surgeon.donor.files import choose_dtype, copy_papers, describe_saved, read_config, read_weights
from layer_surgeon.donor.influence import shorten
from layer_surgeon.donor.int8 import is_quantised, quantise
from layer_surgeon.donor.one_key import installed
from layer_surgeon.donor.probe import Traits, bidirectional_mask, count_positions, probe_layer
from layer_surgeon.donor.scaffold import Run, run_scaffold, scaffold_class, take_layer
from layer_surgeon.donor.tensors import artifact_tensors, load_scaffold, split_by_layer
from layer_surgeon.errors import ArtifactError, ConfigError, UnsupportedArchitectureError

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# What AutoModel passes along that is of no use here. Code from a repo is never run, whatever trust_remote_code says.
_IGNORED_ARGUMENTS = ("_commit_hash", "_from_auto", "_from_pipeline", "adapter_kwargs", "trust_remote_code")


class DonorLayer(PreTrainedModel):  # type: ignore[misc]  # transformers is untyped here
    """One or several decoder layers of a large language model, run by the family's own code from transformers.

    It holds the weights of the chosen layers and nothing else: `layers.<k>.<name inside the layer>`, k = 0, 1, ... in
    the order of `layer_indices`. It is made frozen and in eval mode, and stays so inside of a model that is trained,
    until `unfreeze`.

    Attributes:
        layers: The layers, in the order in which they are applied.
        scaffolds: For each of them the family's model without weights, which makes its masks and positions.
        layer_indices: Which layers of the donor they are.
        hidden_size: Width of the hidden states that they take and give.
    """

    config_class = SurgeonDonorConfig
    base_model_prefix = "donor_layer"
    main_input_name = "hidden_states"
    supports_gradient_checkpointing = True
    # The family's own class decides; these only keep this one from deciding before it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: SurgeonDonorConfig, scaffolds: list[PreTrainedModel] | None = None) -> None:
        """Random weights, or the layers that `scaffolds` hold.

        Args:
            config: What layers of what donor.
            scaffolds: One for each of `config.layer_indices`, with its layer; it is taken from it.

        Raises:
            ArtifactError: `config` describes no layer.
            UnsupportedArchitectureError: The donor's family can't be served.
        """
        if scaffolds is None:
            scaffolds = [_random_scaffold(config, index) for index in config.layer_indices]
        if not scaffolds:
            raise ArtifactError(
                "A config without layer_indices describes no donor layer. Load it from a layer artifact, or make it "
                "with donor_config and layer_indices."
            )
        super().__init__(config)
        config._attn_implementation = scaffolds[0].config._attn_implementation
        self.layer_indices = tuple(config.layer_indices)
        self.hidden_size = int(scaffolds[0].config.hidden_size)
        self.layers = nn.ModuleList(
            take_layer(scaffold, index) for scaffold, index in zip(scaffolds, self.layer_indices, strict=True)
        )
        self.scaffolds = nn.ModuleList(scaffolds)
        self._traits: tuple[Traits, ...] | None = None
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
            pretrained_model_name_or_path: Its folder, or a Hub repo id.
            model_args: Not used.
            config: Instead of the artifact's own.
            dtype: Element type of the weights; None keeps the artifact's.
            output_loading_info: Return the (empty) lists of missing and unexpected tensors too, as transformers does.
            kwargs: `revision`, `token`, `cache_dir`, ... for the Hub; the rest goes to the family's `from_pretrained`
                (`device_map`, `attn_implementation`).

        Raises:
            ArtifactError: It is no layer artifact, or its tensors aren't those of the layers it names.
            SourceError: The folder or repo can't be read.
            UnsupportedArchitectureError: The donor's family can't be served, and why.
        """
        path = str(pretrained_model_name_or_path)
        hub = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
        settings = {name: value for name, value in kwargs.items() if name not in _IGNORED_ARGUMENTS}
        config = deepcopy(config) if config is not None else read_config(path, hub)
        dtype = dtype or settings.pop("torch_dtype", None)
        tensors = read_weights(path, hub, torch.float32 if dtype in (torch.float32, "float32") else None)
        settings["dtype"] = choose_dtype(dtype, config, tensors)
        if config._attn_implementation is not None:
            settings.setdefault("attn_implementation", config._attn_implementation)
        parts = split_by_layer(tensors, list(config.layer_indices))
        scaffolds = [
            load_scaffold(config.family_config(), index, part, position, **settings)
            for position, (index, part) in enumerate(zip(config.layer_indices, parts, strict=True))
        ]
        config.dtype = settings["dtype"]
        config.name_or_path = path
        donor = cls(config, scaffolds)
        donor.probe()
        if output_loading_info:
            return donor, {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
        return donor

    @classmethod
    def from_config(cls, config: SurgeonDonorConfig, dtype: torch.dtype | str | None = None) -> Self:
        """The same layers with random weights, initialised as the family does it; frozen and in eval mode.

        Args:
            config: What layers of what donor. It is not changed.
            dtype: Element type of the weights; None takes the config's, or float32.

        Raises:
            ArtifactError: The config describes no layer.
            UnsupportedArchitectureError: The donor's family can't be served, and why.
        """
        config = deepcopy(config)
        # Not the donor's weights, so neither their digest nor where they came from.
        config.sha256, config.source = None, None
        donor = cls._from_config(config, dtype=choose_dtype(dtype, config, {}))
        donor.probe()
        return donor  # type: ignore[no-any-return]  # transformers is untyped here

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        """What the layers compute inside their model from these hidden states.

        Args:
            hidden_states: [batch, seq, donor_hidden]. Another element type than the weights' is computed in theirs.
            attention_mask: [batch, seq], 1 for tokens and 0 for padding.
            position_ids: [batch, seq]; None: 0 to seq - 1, padding included, as the donor's own forward does.
            causal: Each position sees itself and those before it, as in the donor, with the donor's sliding window
                where the layer has one. False: it sees every position that isn't padding; a sliding window is not
                applied then, as it only limits how far a layer looks back.

        Returns:
            [batch, seq, donor_hidden], in the element type of `hidden_states`. At padding, whatever comes out.

        Raises:
            UnsupportedArchitectureError: The family can't be run bidirectionally, or takes no positions.
            ValueError: The shapes don't fit.
        """
        if hidden_states.ndim != 3 or hidden_states.shape[-1] != self.hidden_size:
            raise ValueError(
                f"hidden_states has shape {list(hidden_states.shape)}, but expected was [batch, seq, "
                f"{self.hidden_size}]. Project them to the donor's width first."
            )
        if attention_mask is not None and attention_mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}, but expected was [batch, seq] = "
                f"{list(hidden_states.shape[:2])}, with 1 for tokens and 0 for padding."
            )
        states = hidden_states.to(self.dtype)
        mask = attention_mask if causal else bidirectional_mask(states, attention_mask)
        for layer, scaffold, traits in zip(self.layers, self.scaffolds, self.probe(), strict=True):
            _check_served(scaffold, traits, causal=causal, positions=position_ids is not None)
            positions = position_ids
            if positions is None and not causal and traits.takes_position_ids:
                positions = count_positions(states)
            run = Run(layer=layer, hidden_states=states, extras=traits.extras)
            output = run_scaffold(scaffold, run, mask, positions).output
            if not isinstance(output, Tensor):
                raise UnsupportedArchitectureError(f"{type(layer).__name__} returned no hidden states.")
            states = output
        return states.to(hidden_states.dtype)

    def probe(self) -> tuple[Traits, ...]:
        """How each layer is to be run; found out on the first call, when the weights are there.

        Raises:
            UnsupportedArchitectureError: A layer can't be run by itself.
        """
        if self._traits is None:
            self._traits = tuple(
                probe_layer(scaffold, layer, self.hidden_size)
                for scaffold, layer in zip(self.scaffolds, self.layers, strict=True)
            )
            for scaffold, layer, traits in zip(self.scaffolds, self.layers, self._traits, strict=True):
                shorten(scaffold, layer, traits.extras, self.hidden_size)
        return self._traits

    @property
    def one_key_shortcut(self) -> bool:
        """Whether, with one position per sequence, products that don't count then are left out.

        False where a layer has none that don't. Setting it to False has everything computed, for comparing.
        """
        return any(bool(module.one_key) for _, module in installed(self))

    @one_key_shortcut.setter
    def one_key_shortcut(self, value: bool) -> None:
        for _, module in installed(self):
            module.one_key = value

    def unfreeze(self) -> Self:
        """Make the weights trainable, and let `train` reach them (dropout, where the family has one).

        Raises:
            ConfigError: They are 8-bit integers.
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
        """Turn the weights of linear maps into 8-bit integers with a scale per row; the rest becomes float32.

        It can't be undone, trained or saved: files keep the weights that the integers are made of.

        Raises:
            ConfigError: torchao is not installed.
        """
        self.freeze()
        quantise(self)
        return self

    def train(self, mode: bool = True) -> Self:
        """Go into training mode, or stay in eval mode if frozen."""
        return super().train(mode and not self._frozen)  # type: ignore[no-any-return]  # transformers is untyped here

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write a layer artifact: tensors with the names of the donor's checkpoint, always in one file.

        The config's `sha256` becomes that of the new file. Model card and licence are copied from the folder that the
        donor was loaded from.

        Args:
            save_directory: Folder; made if it doesn't exist.
            is_main_process: Write nothing if False.
            push_to_hub: Also upload it; `kwargs` are for `push_to_hub` then, such as `repo_id`.
            kwargs: Otherwise accepted for transformers' sake, and without effect (`max_shard_size`, ...).
        """
        if self.int8:
            raise ArtifactError(
                "The weights are 8-bit integers here, and a layer artifact holds those that the integers were made of. "
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
        save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        usual_modes(folder)
        self.config.source = describe_saved(self.config.source, tensors)
        with (folder / SAFE_WEIGHTS_NAME).open("rb") as file:
            self.config.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.config.architectures = [type(self).__name__]
        self.config.dtype = str(self.dtype).removeprefix("torch.")
        self.config.save_pretrained(folder)
        copy_papers(Path(self.config.name_or_path or ""), folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move or convert, but leave rotary and similar buffers in their element type: `to(bfloat16)` is for weights.

        They are part of no checkpoint and can't be had back; the family computes them in float32 whatever its weights.
        """
        kept = [
            (module, name, module._buffers[name])
            for module in self.modules()
            for name in sorted(module._non_persistent_buffers_set)
            if module._buffers.get(name) is not None
        ]
        # Integers have no other type, and the rest of an int8 donor has float32 with them.
        super()._apply(_only_moving(fn) if self.int8 else fn, recurse)
        for module, name, buffer in kept:
            moved = module._buffers[name]
            if moved is not None:
                # Without numbers there are none to keep, but the type counts when they are made.
                module._buffers[name] = moved.to(buffer.dtype) if buffer.is_meta else buffer.to(moved.device)
        return self

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as the family does it; transformers calls this for modules whose weights were not loaded."""
        scaffold: Any = self.scaffolds[0]
        scaffold._init_weights(module)


def _only_moving(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def move(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        return result if result.dtype == tensor.dtype else tensor.to(result.device)

    return move


def _random_scaffold(config: SurgeonDonorConfig, index: int) -> PreTrainedModel:
    """A scaffold with a layer that has random weights, or none if it is made under `torch.device("meta")`.

    The whole model is only ever on the meta device: of a 70B model, one layer is 1.7 GB, and all are 141.
    """
    family = config.family_config()
    if config._attn_implementation is not None:
        family._attn_implementation = config._attn_implementation
    device = torch.empty(0).device
    with torch.device("meta"):
        scaffold = scaffold_class(family, index)(family)
    if device.type != "meta":
        scaffold.to_empty(device=device)
        scaffold.initialize_weights()
    return scaffold


def _check_served(scaffold: PreTrainedModel, traits: Traits, *, causal: bool, positions: bool) -> None:
    reason = traits.not_causal if causal else traits.not_bidirectional
    if reason is not None:
        way, other = ("causally", "causal=False") if causal else ("bidirectionally", "causal=True")
        raise UnsupportedArchitectureError(
            f"A layer of {type(scaffold).__name__} can't be run {way}: {reason}. Run it with {other}, or take a donor "
            "of another family."
        )
    if positions and not traits.takes_position_ids:
        raise UnsupportedArchitectureError(
            f"{type(scaffold).__name__} takes no position_ids, so positions other than 0, 1, 2, ... can't be given to "
            "it. Leave position_ids out."
        )
