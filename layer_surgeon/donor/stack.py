"""`DonorStack`: a donor's embeddings and first layers, which read text exactly as inside of their model."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Self

from torch import Tensor, nn
from transformers import Cache

from layer_surgeon.donor.config import SurgeonDonorConfig
from layer_surgeon.donor.entrance import DonorEntrance, plan_entrance
from layer_surgeon.donor.frozen import FrozenDonor, family_of
from layer_surgeon.donor.layer import DonorLayer, last
from layer_surgeon.donor.probe import takes_position_ids
from layer_surgeon.donor.tensors import split_by_layer
from layer_surgeon.errors import ArtifactError

_PREFIX = "embeddings."


class DonorStack(FrozenDonor):
    """The first layers of a large language model with everything that acts before them, run by the family's own code.

    It is made frozen and in eval mode, and stays so inside of a model that is trained, until `unfreeze`.

    Attributes:
        entrance: What acts before the first layer.
        layers: The layers.
        hidden_size: Width of the output.
    """

    base_model_prefix = "donor_stack"
    main_input_name = "input_ids"

    def __init__(
        self,
        config: SurgeonDonorConfig,
        entrance: DonorEntrance | None = None,
        layers: DonorLayer | None = None,
    ) -> None:
        """Make a stack with random weights, or one of the given parts.

        Args:
            config: The donor's config, the indices of the layers, and what the embeddings are.
            entrance: What acts before the first layer.
            layers: The layers.

        Raises:
            ArtifactError: `config` doesn't describe a stack.
            UnsupportedArchitectureError: The donor's family is not supported.
        """
        self._check_kind(config, "This config")
        if entrance is None:
            num_rows = None if config.vocabulary is None else config.vocabulary["size"]
            entrance = DonorEntrance.random(plan_entrance(family_of(config)), num_rows)
        if layers is None:
            layers = DonorLayer(_without_embeddings(config))
        super().__init__(config)
        config._attn_implementation = layers.config._attn_implementation
        self.entrance = entrance
        self.layers = layers
        self.hidden_size = layers.hidden_size
        self._entrance_is_local: bool | None = None
        self.post_init()
        self.freeze()

    @classmethod
    def from_tensors(cls, config: SurgeonDonorConfig, tensors: Mapping[str, Tensor], **settings: Any) -> Self:
        """Make a stack from tensors in memory, frozen and in eval mode.

        Args:
            config: The donor's config, the indices of the layers, and what the embeddings are. Its dtype is set.
            tensors: The tensors, named as in an artifact.
            settings: Arguments for the family's `from_pretrained`. `dtype` is required.

        Raises:
            ArtifactError: The tensors don't match the config.
            UnsupportedArchitectureError: The donor's family is not supported.
        """
        cls._check_kind(config, "This config")
        before = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
        in_layers = {name: tensor for name, tensor in tensors.items() if not name.startswith(_PREFIX)}
        plan = plan_entrance(family_of(config))
        if plan.token_table is not None and plan.token_table in before:
            donor_rows = plan.shapes[plan.token_table][0]
            num_rows = donor_rows if config.vocabulary is None else config.vocabulary["size"]
            _check_rows(before[plan.token_table], num_rows)
        entrance = DonorEntrance.from_tensors(plan, before, **settings)
        layers = DonorLayer.from_tensors(
            _without_embeddings(config), split_by_layer(in_layers, list(config.layer_indices)), **settings
        )
        config.dtype = settings["dtype"]
        return cls(config, entrance, layers)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers.layer_indices)

    @property
    def vocabulary(self) -> dict[str, Any] | None:
        """The vocabulary that `input_ids` are of, if it is not the donor's own: its name, size, sha256 and rule."""
        return self.config.vocabulary  # type: ignore[no-any-return]  # transformers is untyped here

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Read tokens, with the same result as inside the donor.

        Args:
            input_ids: [batch, seq]: tokens of the donor, or of `vocabulary`.
            attention_mask: [batch, seq], 1 for tokens and 0 for padding. With a cache, [batch, cached + seq].
            position_ids: [batch, seq]. None: as the family's own forward counts them. With a cache, they must be passed
                to families that accept them.
            cache: From `new_cache`. It holds the positions of earlier calls, and receives the new ones.

        Returns:
            [batch, seq, donor_hidden]: the donor's hidden states after the last layer of the stack, before any final
            norm. Values at padding are undefined.

        Raises:
            UnsupportedArchitectureError: The family doesn't accept position_ids.
            ValueError: A shape is wrong.
        """
        return last(self.walk(input_ids, attention_mask, position_ids, cache))

    def walk(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Iterator[Tensor]:
        """Read tokens layer by layer, as `forward` does, and yield the states after each layer: see `DonorLayer.walk`.

        Hooks on the layers fire, and those on `layers` as a whole don't.

        Args:
            input_ids: As in `forward`, like all other arguments.
            attention_mask: [batch, seq].
            position_ids: [batch, seq].
            cache: As in `forward`.

        Yields:
            [batch, seq, donor_hidden], once per layer.

        Raises:
            UnsupportedArchitectureError, ValueError: As in `forward`, when the first layer is asked for.
        """
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {list(input_ids.shape)}, but must have shape [batch, seq].")
        if cache is None and attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}, but must have shape [batch, seq] = "
                f"{list(input_ids.shape)}, with 1 for tokens and 0 for padding."
            )
        mask_of_new = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        states = self.entrance(input_ids, mask_of_new, position_ids)
        for output in self.layers.walk(states, attention_mask, position_ids, cache=cache):
            yield output.to(states.dtype)

    def new_cache(self) -> Cache | None:
        """Make an empty cache for a text that is passed in pieces: transformers' own, with one layer per donor layer.

        None if the result wouldn't be exact, because of the layers (as in `DonorLayer.new_cache`), or because what
        enters them depends on more than a token and its position. The first call finds that out.
        """
        if self._entrance_is_local is None:
            self._entrance_is_local = self.entrance.is_local()
        return self.layers.new_cache() if self._entrance_is_local else None

    @property
    def takes_position_ids(self) -> bool:
        """Whether the family's forward accepts position_ids."""
        return takes_position_ids(self.entrance.model)

    def probe(self) -> None:
        """Find out how to run the layers. They must have their weights by then.

        Raises:
            UnsupportedArchitectureError: A layer can't run by itself.
        """
        self.layers.probe(causal_only=True)

    def unfreeze(self) -> Self:
        """Make the weights trainable, and let `train` switch to training mode (dropout, if the family has it)."""
        self.layers.unfreeze()
        return super().unfreeze()

    def freeze(self) -> Self:
        """Undo `unfreeze`."""
        self.layers.freeze()
        return super().freeze()

    @classmethod
    def _check_kind(cls, config: SurgeonDonorConfig, path: str) -> None:
        if config.embeddings is None:
            raise ArtifactError(
                f"{path} has no embeddings, so it is not a stack artifact and can't read text. Extract one: surgeon "
                "extract MODEL --layer 0:9 --embeddings. Load layers alone with DonorLayer."
            )

    @classmethod
    def _from_artifact(cls, config: SurgeonDonorConfig, tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> Any:
        return cls.from_tensors(config, tensors, **settings)

    def _artifact_tensors(self) -> dict[str, Tensor]:
        return {
            **{f"{_PREFIX}{name}": tensor for name, tensor in self.entrance.tensors().items()},
            **self.layers._artifact_tensors(),
        }

    def _init_weights(self, module: nn.Module) -> None:
        """Use the family's own initialisation. transformers calls this for modules whose weights were not loaded."""
        self.layers._init_weights(module)


def _without_embeddings(config: SurgeonDonorConfig) -> SurgeonDonorConfig:
    layers = deepcopy(config)
    layers.embeddings = None
    return layers


def _check_rows(table: Tensor, num_rows: int) -> None:
    if table.ndim != 2 or len(table) != num_rows:
        raise ArtifactError(
            f"The table of tokens has shape {list(table.shape)}, but must have {num_rows:,} rows, one per token of its "
            "vocabulary. Extract the layers again with --embeddings."
        )
