"""`DonorLayer`: a frozen layer that computes exactly what it computed inside its model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from layer_surgeon.donor.cache import is_exact_with_cache, new_cache_layer
from layer_surgeon.donor.config import SurgeonDonorConfig
from layer_surgeon.donor.frozen import FrozenDonor, family_of
from layer_surgeon.donor.influence import shorten
from layer_surgeon.donor.one_key import installed
from layer_surgeon.donor.probe import Traits, bidirectional_mask, count_positions, probe_layer
from layer_surgeon.donor.scaffold import Run, run_scaffold, take_layer
from layer_surgeon.donor.tensors import artifact_tensors, load_scaffold, random_scaffold, split_by_layer
from layer_surgeon.errors import ArtifactError, UnsupportedArchitectureError

_States = TypeVar("_States")


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Leave out dropout, which would look like attention to later positions."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


class DonorLayer(FrozenDonor):
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

    base_model_prefix = "donor_layer"
    main_input_name = "hidden_states"

    def __init__(self, config: SurgeonDonorConfig, scaffolds: list[PreTrainedModel] | None = None) -> None:
        """Make layers with random weights, or take the layers out of `scaffolds`.

        Args:
            config: The donor's config and the indices of the layers.
            scaffolds: One scaffold per index in `config.layer_indices`, each with its layer. The layers are taken out.

        Raises:
            ArtifactError: `config` doesn't describe a layer.
            UnsupportedArchitectureError: The donor's family is not supported.
        """
        self._check_kind(config, "This config")
        if scaffolds is None:
            scaffolds = [random_scaffold(family_of(config), index) for index in config.layer_indices]
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
        self._traits: tuple[Traits, ...] | None = None
        self._can_cache: bool | None = None
        self._frozen = True
        self.post_init()
        self.requires_grad_(False)
        self.eval()

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
    def _check_kind(cls, config: SurgeonDonorConfig, path: str) -> None:
        if config.embeddings is not None:
            raise ArtifactError(
                f"{path} has embeddings next to its layers, so it is a stack artifact. Load it with DonorStack."
            )

    @classmethod
    def _from_artifact(cls, config: SurgeonDonorConfig, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> Any:
        return cls.from_tensors(config, split_by_layer(tensors, list(config.layer_indices)), **settings)

    def _artifact_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for position, (scaffold, layer, index) in enumerate(
            zip(self.scaffolds, self.layers, self.layer_indices, strict=True)
        ):
            tensors.update(artifact_tensors(scaffold, layer, index, position))
        return tensors

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
        return last(self.walk(hidden_states, attention_mask, position_ids, causal, cache)).to(hidden_states.dtype)

    def walk(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        causal: bool = True,
        cache: Cache | None = None,
    ) -> Iterator[Tensor]:
        """Run the layers one by one, as `forward` does, and yield the states after each.

        Several walks without caches can take turns, so that each layer runs on several inputs before the next: its
        weights then stay in the processor's cache. Nothing is checked or run before the first layer is asked for.

        Args:
            hidden_states: As in `forward`, like all other arguments.
            attention_mask: [batch, seq].
            position_ids: [batch, seq].
            causal: As in `forward`.
            cache: As in `forward`.

        Yields:
            [batch, seq, donor_hidden], in the element type of the weights, once per layer.

        Raises:
            UnsupportedArchitectureError, ValueError: As in `forward`, when the first layer is asked for.
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
            yield states

    def probe(self, *, causal_only: bool = False) -> tuple[Traits, ...]:
        """Find out how to run each layer. The first call runs the layers, so they must have their weights by then.

        Args:
            causal_only: Don't find out whether they can run bidirectionally; they then can't. It takes less time.

        Raises:
            UnsupportedArchitectureError: A layer can't run by itself.
        """
        if self._traits is None:
            with _in_eval_mode(self):
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

    def _init_weights(self, module: nn.Module) -> None:
        """Use the family's own initialisation. transformers calls this for modules whose weights were not loaded."""
        scaffold: Any = self.scaffolds[0]
        scaffold._init_weights(module)


def last(states: Iterable[_States]) -> _States:
    """Return the last of the states that a walk, or several that take turns, yield. There must be one."""
    for latest in states:  # noqa: B007  # Only the last one is kept, so that the others don't stay in memory.
        pass
    return latest


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
