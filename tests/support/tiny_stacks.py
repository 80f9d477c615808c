"""Small stack artifacts made straight from tiny models, and what a whole model computes after its first layers."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from layer_surgeon.checkpoint import open_checkpoint
from layer_surgeon.donor import DonorStack
from layer_surgeon.donor.checkpoint_names import checkpoint_names
from layer_surgeon.donor.entrance import plan_entrance
from layer_surgeon.donor.family import family_config
from tests.support.exactness import find_layers, padding
from tests.support.tiny_models import cut_artifact, save_quietly


def save_stack(model: PreTrainedModel, num_layers: int, folder: Path) -> Path:
    """Write a stack artifact of a model: its embeddings and first layers, without a tokenizer."""
    checkpoint = folder.with_name(f"{folder.name}-checkpoint")
    if not checkpoint.exists():
        save_quietly(model, checkpoint)
    cut_artifact(checkpoint, range(num_layers), folder)
    opened = open_checkpoint(checkpoint)
    plan = plan_entrance(family_config(dict(opened.config)))
    stored = load_file(checkpoint / "model.safetensors")
    names = checkpoint_names(plan.outline, plan.shapes, opened)
    tensors = {f"embeddings.{name}": stored[name_there] for name, name_there in names.items()}
    save_file({**tensors, **load_file(folder / "model.safetensors")}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["DonorStack"],
        "sha256": None,
        "embeddings": {"token_table": plan.token_table, "vocabulary": None},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def states_after(model: PreTrainedModel, num_layers: int, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Hidden states of a whole model after some of its layers, before the final norm: [batch, seq, width]."""
    with watch_layers(find_layers(model)) as states, torch.no_grad():
        model(input_ids=input_ids, attention_mask=attention_mask)
    return states[num_layers - 1]


@contextmanager
def watch_layers(layers: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Give the list to which each call of a layer adds its output."""
    states: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        states.append((output[0] if isinstance(output, (tuple, list)) else output).detach().clone())

    handles = [layer.register_forward_hook(keep) for layer in layers]
    yield states
    for handle in handles:
        handle.remove()


def stack_difference(model: PreTrainedModel, stack: DonorStack, kind: str, length: int = 19) -> float:
    """The largest difference between a stack and the whole model, at any depth, at positions that are not padding.

    NaN if one of them has a NaN there.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    input_ids = torch.randint(3, vocabulary, (3, length), generator=torch.Generator().manual_seed(1))
    mask = padding(kind, 3, length)
    kept = torch.ones(3, length, dtype=torch.bool) if mask is None else mask.bool()
    with torch.no_grad():
        with watch_layers(find_layers(model)) as expected:
            model(input_ids=input_ids, attention_mask=mask)
        with watch_layers(stack.layers.layers) as states:
            output = stack(input_ids, mask)
    assert len(states) == stack.num_layers <= len(expected)
    pairs = [*zip(states, expected, strict=False), (output, expected[stack.num_layers - 1])]
    return torch.stack([(ours - theirs)[kept].abs().max() for ours, theirs in pairs]).max().item()
