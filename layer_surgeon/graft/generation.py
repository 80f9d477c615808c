"""What the tasks that generate text share: the whole host stays, and generates with its own code."""

import copy
from typing import Any

from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

from layer_surgeon.errors import GraftError
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.graft.modeling import GraftedModel


class GeneratingModel(GraftedModel, GenerationMixin):  # type: ignore[misc]  # transformers is untyped here
    """A grafted model that keeps the host's language head. The graft is inside the host."""

    def __init__(
        self, config: SurgeonGraftConfig, host: PreTrainedModel | None = None, with_donor: bool = True
    ) -> None:
        super().__init__(config, host=host, with_donor=with_donor)
        if host is not None:
            self.generation_config = copy.deepcopy(host.generation_config)

    def keep_states(self, input_ids: Tensor | None, attention_mask: Tensor | None, donor_states: Tensor | None) -> None:
        """Check states of the donor that were computed earlier, and keep them for the host's next pass.

        Without states, forget those that an earlier pass left.
        """
        if self._site_hooks is not None:
            if donor_states is not None:
                donor_states = self.read_text(input_ids, attention_mask, donor_states=donor_states)
            self._site_hooks.expect(donor_states)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate text with the host's own `generate`.

        Raises:
            GraftError: peft adds a trained prompt.
        """
        if getattr(self.__dict__.get("prepare_inputs_for_generation"), "__self__", self) is not self:
            # peft sets this for the length of its own `generate`; the host's `generate` would not call it.
            raise GraftError(
                "A trained prompt of peft (prompt tuning, prefix tuning) can't generate text with a graft. Use LoRA."
            )
        self.keep_states(None, None, None)
        self.host.generation_config = self.generation_config
        return self.host.generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare inputs as the host does."""
        return self.host.prepare_inputs_for_generation(*args, **kwargs)

    def get_output_embeddings(self) -> Any:
        """Return the host's language head."""
        return self.host.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace the host's language head, as `resize_token_embeddings` does."""
        self.host.set_output_embeddings(new_embeddings)
