"""`GraftedModel`: a host, two projections, a donor layer and a head in one transformers model."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from layer_surgeon.donor import DonorLayer, DonorStack
from layer_surgeon.errors import ConfigError, GraftError
from layer_surgeon.graft.adapters import check_adapters
from layer_surgeon.graft.donor_loading import new_donor
from layer_surgeon.graft.gate import Gate
from layer_surgeon.graft.head import ClassificationHead
from layer_surgeon.graft.hosts import host_kind, host_width, mark_loaded, new_host
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.graft.pooling import check_mask, count_positions, find_padding, first_token_mask
from layer_surgeon.graft.projection import new_projection
from layer_surgeon.graft.reading import DonorNorm, check_new_tokens, check_states, run_stack
from layer_surgeon.graft.sites import SiteHooks, checkpoints_hooks, find_reader, prepare_host
from layer_surgeon.graft.storage import StoredModel
from layer_surgeon.tasks import get_task

_NOT_ATTACHED = "The donor layer is not attached. Call attach_donor first, or load with donor=..."


class GraftedModel(StoredModel):
    """A small model with a grafted layer of a large model.

    For hidden states h of the host, [batch, seq, host_hidden], the graft is proj_out(donor(proj_in(h))), of the same
    shape (paper, section 3.1). With donor_reads="text", the donor reads the text itself, its states are
    proj_out(donor_norm(donor(ids))), and the setting `join` says how h and these become one. Each task names a
    subclass, which defines the graft's input and what follows the graft.

    Attributes:
        host: The small model without head and pooler; for an encoder-decoder model, its encoder. For tasks that
            generate text, the whole model.
        proj_in: Linear, host_hidden -> donor_hidden (L_in in the paper). None without a donor, or if it reads text.
        donor: The `DonorLayer`, or the `DonorStack` that reads the text. None in the control arm, which is the host
            alone with the same head.
        donor_norm: The `DonorNorm` over the states of a donor that reads text; else None.
        proj_out: Linear, donor_hidden -> host_hidden (L_out in the paper). None without a donor.
        proj_out_norm: The LayerNorm after proj_out, if the setting of that name is true; else None.
        residual_gate: The module that adds the graft to the host if residual="gated" or join="gated"; else None.
        head: The task's own head. None for tasks that keep the host's language head, or have no head.
        pooling: How the states of a text become one vector; `none` for tasks that don't pool them.

    Args:
        config: The config.
        host: The loaded host; None creates one with new weights.
        with_donor: Create the donor layer that the config names, with random weights. Without it, `attach_donor` has
            to add one.
    """

    base_model_prefix = "host"
    # If the model is spread over several devices, the donor layer stays on one of them.
    _no_split_modules = ["DonorLayer", "DonorStack"]
    main_input_name = "input_ids"
    # Host and donor check themselves which implementations of attention they support.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The mean and scale of its features need more digits than half precision has.
    _keep_in_fp32_modules_strict = {"donor_norm"}
    # forward ignores the number of items in a batch, so Trainer must average over accumulated steps itself.
    accepts_loss_kwargs = False

    host: PreTrainedModel
    proj_in: nn.Linear | None
    donor_norm: DonorNorm | None
    proj_out: nn.Linear | None
    proj_out_norm: nn.LayerNorm | None
    residual_gate: Gate | None
    head: ClassificationHead | None
    # Where the host came from, as the caller of `graft_layer` named it, and its commit: its tokenizer is there too.
    # Not stored, because a file must not decide which repos are read.
    host_source: tuple[str, str | None] | None = None
    # The artifact that the donor of a new graft came from, with its tokenizer. Not stored either.
    donor_source: Path | None = None

    def __init__(
        self, config: SurgeonGraftConfig, host: PreTrainedModel | None = None, with_donor: bool = True
    ) -> None:
        super().__init__(config)
        # Making the settings reads JSON, which torch.compile can't trace in `forward`.
        settings = self._settings = config.settings
        self.pooling = settings.pooling or "none"
        self.host_kind = host_kind(config.host_config)
        self.host, target = prepare_host(
            new_host(config.host_config, config.task) if host is None else host, self.host_kind, settings
        )
        self.supports_gradient_checkpointing = self.host.supports_gradient_checkpointing
        self._host_inputs = frozenset(inspect.signature(self.host.forward).parameters)
        self._is_causal = settings.attention == "causal"
        self.proj_in = self.donor = self.donor_norm = self.proj_out = self.proj_out_norm = self.residual_gate = None
        # None without a donor, and for one that gets the host's vectors.
        self._join = None if config.donor is None else settings.join
        if config.donor is not None:
            width, donor_width = host_width(config.host_config), int(config.donor["hidden_size"])
            if settings.reads_text:
                self.donor_norm = DonorNorm(donor_width)
            else:
                self.proj_in = new_projection(width, donor_width, settings)
            self.proj_out = new_projection(donor_width, width, settings)
            if settings.proj_out_norm:
                self.proj_out_norm = nn.LayerNorm(width)
            if "gated" in (settings.residual, settings.join):
                self.residual_gate = Gate()
            if with_donor:
                self.attach_donor(new_donor(config.donor, settings))
        self._site_hooks = None if target is None else self._hook_site(target)
        self.head = self.build_head()
        if host is not None:
            mark_loaded(self.host)
        self.post_init()

    def _hook_site(self, target: nn.Module) -> SiteHooks:
        """Let the graft replace the output of a module of the host."""
        if self.proj_out is None:
            # A host alone, or with a block of a study that sees each position separately: it needs no mask.
            return SiteHooks(self.graft, target, None, self.new_donor_cache)
        reader = find_reader(self.host, self.host_kind)
        if target is not reader and checkpoints_hooks(target):
            self.supports_gradient_checkpointing = False
        read_text = None if self._join is None else self._read_host_tokens
        return SiteHooks(self.graft, target, reader, self.new_donor_cache, read_text)

    def new_donor_cache(self) -> Cache | None:
        """Make an empty cache for the donor; None for tasks that pass a text through the donor only once."""
        return None

    def build_head(self) -> ClassificationHead | None:
        """Build the task's own head; None if it has none."""
        return None

    def new_head(self, num_outputs: int) -> ClassificationHead:
        """Make the paper's head, for the vectors that leave the graft."""
        width = self.config.hidden_size
        return ClassificationHead(
            width, num_outputs, self.config.settings.dropout, 2 * width if self._join == "concat" else width
        )

    def token_mask(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
        """Check the mask, or find the padding if a decoder has to pool without one.

        Returns:
            [batch, seq], 1 for text and 0 for padding; None: no padding.

        Raises:
            GraftError: The mask has another shape; or there is none, and the host has no padding token.
        """
        check_mask(attention_mask)
        if attention_mask is None and self.host_kind == "decoder" and self.pooling in ("last", "mean"):
            return find_padding(input_ids, self.config.pad_token_id)
        return attention_mask

    def run_host(
        self,
        *,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        """Run the host and return its own output; `last_hidden_state` is [batch, seq, host_hidden]."""
        if position_ids is None:
            position_ids = self._positions(attention_mask)
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        # Tokenizers of some decoders return segments, although the model has no such input.
        unsupported = {"token_type_ids"} - self._host_inputs
        host_inputs = {name: value for name, value in inputs.items() if value is not None and name not in unsupported}
        arguments = self.wanted_outputs(kwargs) | {"use_cache": False, "return_dict": True}
        if "use_cache" not in self._host_inputs:
            del arguments["use_cache"]
        if "global_attention_mask" in self._host_inputs and self.pooling == "cls":
            # The first token has to see the whole text, as in the family's own classifiers.
            arguments.setdefault("global_attention_mask", first_token_mask(input_ids, inputs_embeds))
        return self.host(**host_inputs, **arguments)

    def wanted_outputs(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Add the host's outputs that the config asks for to the arguments of its pass. Given arguments stay."""
        names = ("output_hidden_states", "output_attentions")
        return {name: True for name in names if getattr(self.config, name)} | dict(arguments)

    def _positions(self, attention_mask: Tensor | None) -> Tensor | None:
        """Return positions that don't count padding, so padding on the left doesn't change a decoder's result."""
        takes_positions = self.host_kind == "decoder" and "position_ids" in self._host_inputs
        if attention_mask is None or attention_mask.dim() != 2 or not takes_positions:
            return None
        return count_positions(attention_mask)

    def read(
        self, attention_mask: Tensor | None, donor_states: Tensor | None = None, **inputs: Any
    ) -> tuple[Any, Tensor]:
        """Return the host's own output, and the states of all tokens after the graft, [batch, seq, width].

        The width is host_hidden, and twice that with join="concat".

        Args:
            attention_mask: [batch, seq], or None.
            donor_states: From `read_text`; None if the donor doesn't read the text.
            inputs: The host's other inputs.
        """
        if self._site_hooks is None:
            outputs = self.run_host(attention_mask=attention_mask, **inputs)
            may_be_packed = attention_mask is None and inputs.get("position_ids") is not None
            # Passed only where they matter: a subclass may define `graft` without them.
            positions = {"position_ids": inputs["position_ids"]} if may_be_packed else {}
            states = self.graft(outputs.last_hidden_state, attention_mask, donor_states=donor_states, **positions)
            return outputs, states
        self._site_hooks.expect(donor_states)
        outputs = self.run_host(attention_mask=attention_mask, **inputs)
        return outputs, outputs.last_hidden_state

    def read_text(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        donor_input_ids: Tensor | None = None,
        donor_attention_mask: Tensor | None = None,
        donor_states: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor | None:
        """Return the donor's states of a text, which `forward` also takes as `donor_states`.

        A frozen donor computes the same states of a text every time, so they can be computed once and kept.

        Args:
            input_ids: [batch, seq], the host's tokens.
            attention_mask: [batch, seq] of 1 (token) and 0 (padding); None: no padding.
            donor_input_ids: [batch, donor_seq], the donor's tokens, for donor_tokens="own".
            donor_attention_mask: [batch, donor_seq].
            donor_states: States that were computed earlier. They are checked and returned.
            cache: The donor's cache, which holds earlier positions and receives these. The mask also covers them.

        Returns:
            [batch, seq, donor_hidden], zero at padding; or [batch, donor_hidden] if the join needs one vector per text.
            None if the donor doesn't read text, or there is none.

        Raises:
            GraftError: The inputs are not those that this donor reads, or the states have the wrong shape.
        """
        settings = self._settings
        own = {"donor_input_ids": donor_input_ids, "donor_attention_mask": donor_attention_mask}
        if not settings.reads_text or settings.donor_tokens == "host":
            names = [name for name, value in own.items() if value is not None]
            names += ["donor_states"] if donor_states is not None and not settings.reads_text else []
            if names:
                reads = "reads the host's tokens" if settings.reads_text else "gets the host's vectors"
                raise GraftError(f"You passed {names[0]}, but the donor of this graft {reads}. Leave {names[0]} out.")
        if self._join is None:
            return None
        ids, mask = input_ids, attention_mask
        if settings.donor_tokens == "own":
            ids, mask = donor_input_ids, donor_attention_mask
        if donor_states is not None:
            return check_states(donor_states, int(self.config.donor["hidden_size"]), settings, input_ids)
        if self.donor is None:
            raise GraftError(_NOT_ATTACHED)
        return run_stack(cast(DonorStack, self.donor), ids, mask, settings, cache)

    def _read_host_tokens(self, input_ids: Tensor | None, attention_mask: Tensor | None, cache: Cache | None) -> Tensor:
        return cast(Tensor, self.read_text(input_ids, attention_mask, cache=cache))

    def graft(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        donor_states: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Send hidden states through the graft; without a donor, return them unchanged.

        Args:
            hidden: [batch, seq, host_hidden].
            attention_mask: [batch, seq] of 1 (token) and 0 (padding); None: no padding. With a cache, it also covers
                the cached positions.
            cache: The donor's cache, which holds earlier positions and receives these. None: run without cache.
            donor_states: From `read_text`, if the donor reads the text.
            position_ids: [batch, seq]. Without a mask and a cache, they tell apart the texts that are packed into one
                row, for a donor with attention="causal".

        Returns:
            [batch, seq, host_hidden], or twice that width with join="concat".
        """
        if self.proj_out is None:
            return hidden
        if hidden.shape[-1] != (width := host_width(self.config.host_config)):
            raise GraftError(
                f"The host's hidden states are {hidden.shape[-1]} wide at this site, but its config has a hidden_size "
                f"of {width}. Choose another site or another host."
            )
        if self.proj_in is None:
            if donor_states is None:
                raise GraftError(
                    f"The donor reads the text, but {type(self).__name__} passes no donor_states to `graft`. Compute "
                    "them with `read_text` in its forward."
                )
            out = self._project(self._normalised(donor_states))
        else:
            out = self._project(self._run_layer(hidden, attention_mask, cache, position_ids))
        if self.residual_gate is not None:
            return self.residual_gate(hidden, out)  # type: ignore[no-any-return]  # transformers is untyped here
        if self._join is None:
            return out
        out = out.expand_as(hidden)
        return torch.cat([hidden, out], dim=-1) if self._join == "concat" else out

    def _run_layer(
        self, hidden: Tensor, attention_mask: Tensor | None, cache: Cache | None, position_ids: Tensor | None
    ) -> Tensor:
        """Return donor(proj_in(hidden)), [batch, seq, donor_hidden]."""
        donor, proj_in = cast(DonorLayer | None, self.donor), cast(nn.Linear, self.proj_in)
        if donor is None:
            raise GraftError(_NOT_ATTACHED)
        check_mask(attention_mask)
        donor_input = proj_in(hidden)  # [batch, seq, donor_hidden]
        # A single position sees only itself in either mode, and not every family can run bidirectionally.
        causal = self._is_causal or hidden.shape[1] == 1
        positions = None
        if all(traits.takes_position_ids for traits in donor.probe()):
            if attention_mask is not None:
                # Padding is not counted, so a text gives the same result with and without padding on the left.
                positions = count_positions(attention_mask)[:, -hidden.shape[1] :]
            elif cache is None and position_ids is not None and position_ids.dim() == 2:
                positions = position_ids - position_ids[:, :1]  # Some hosts (RoBERTa) count from another number than 0.
        return donor(  # type: ignore[no-any-return]  # transformers is untyped here
            donor_input, attention_mask=attention_mask, position_ids=positions, causal=causal, cache=cache
        )

    def _normalised(self, donor_states: Tensor) -> Tensor:
        """Return the normalised states, [batch, seq or 1, donor_hidden]."""
        states = donor_states if donor_states.dim() == 3 else donor_states.unsqueeze(1)
        normalised: Tensor = cast(DonorNorm, self.donor_norm)(states)
        return normalised.to(cast(nn.Linear, self.proj_out).weight.dtype)

    def _project(self, donor_output: Tensor) -> Tensor:
        """Return proj_out, and the norm if there is one: [..., donor_hidden] -> [..., host_hidden]."""
        out: Tensor = cast(nn.Linear, self.proj_out)(donor_output)
        return out if self.proj_out_norm is None else self.proj_out_norm(out)

    @property
    def gate(self) -> nn.Parameter | None:
        """The factor of the graft, [1], if residual or join is "gated"; it starts at zero. Otherwise None."""
        return None if self.residual_gate is None else self.residual_gate.weight

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen donor layer stays in eval mode.

        Raises:
            GraftError: The frozen donor layer has a peft adapter.
        """
        if mode:
            check_adapters(self)
            self.config.untrained = False
        return super().train(mode)  # type: ignore[no-any-return]  # transformers is untyped here

    def parts(self) -> dict[str, nn.Module]:
        """Return the model's parts in the order of the data flow: host, proj_in, donor, norms, proj_out, gate, head.

        Parts that the model lacks are left out.
        """
        graft = {
            "proj_in": self.proj_in,
            "donor": self.donor,
            "donor_norm": self.donor_norm,
            "proj_out": self.proj_out,
            "proj_out_norm": self.proj_out_norm,
            "gate": self.residual_gate,
        }
        parts = {"host": self.host, **graft, "head": self.head}
        return {name: part for name, part in parts.items() if part is not None}

    def parameter_counts(self) -> dict[str, tuple[int, int]]:
        """Count the parameters of each part: (all, trained). Parts that the model lacks are left out."""
        counts = {}
        for name, part in self.parts().items():
            trained = sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
            counts[name] = (sum(parameter.numel() for parameter in part.parameters()), trained)
        return counts

    def set_labels(self, names: Sequence[str]) -> None:
        """Name the labels, in the order of their ids. If their number changes, the head's last layer is re-initialised.

        Raises:
            ConfigError: The list is empty, a name is not a non-empty string, two names are equal, or the task has no
                labels.
        """
        if self.head is None or not get_task(self.config.task).labels:
            raise ConfigError(f"You passed labels, but {self.config.task} has none. Leave them out.")
        if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
            raise ConfigError(f"Labels are {list(names)!r}; pass at least one, each a different non-empty string.")
        if len(names) != self.config.num_labels:
            # transformers then derives the kind of loss from the new number.
            self.config.problem_type = None
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: index for index, name in enumerate(names)}
        self.head.set_num_labels(len(names))

    def _replicate_for_data_parallel(self) -> Self:
        """Refuse `torch.nn.DataParallel`: the hooks inside its copies of the host would run the original's donor."""
        raise GraftError(
            "DataParallel, which Trainer uses if one process sees several GPUs, can't run a graft. Start one process "
            "per GPU (accelerate launch, or surgeon finetune --num-processes), or show one GPU: CUDA_VISIBLE_DEVICES=0."
        )

    def get_input_embeddings(self) -> nn.Module:
        """Return the host's token embeddings."""
        return self.host.get_input_embeddings()  # type: ignore[no-any-return]  # transformers is untyped here

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the host's token embeddings."""
        self.host.set_input_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """Change the number of the host's tokens by its own method, which in BART also resizes a bias.

        Raises:
            GraftError: The donor reads the host's tokens, and has no vectors for the new ones.
        """
        if self._join is not None and self._settings.donor_tokens == "host" and self.donor is not None:
            present = cast(nn.Embedding, self.get_input_embeddings()).weight.shape[0]
            check_new_tokens(cast(DonorStack, self.donor), present, new_num_tokens)
        return cast(nn.Module, self.host.resize_token_embeddings(new_num_tokens, *args, **kwargs))

    @classmethod
    def is_custom_code(cls) -> bool:
        """Let transformers initialise what is not stored, such as a host's buffers, as in its own models."""
        return False

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the projections, the gate and the head as PyTorch does; the published code does the same.

        Linear weights are uniform within ±1/sqrt(input width), so the projection out of a wide donor starts small.
        """
        if isinstance(module, nn.Linear | nn.LayerNorm | Gate):
            module.reset_parameters()
