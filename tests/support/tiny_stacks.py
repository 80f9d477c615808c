"""Small stack artifacts made straight from tiny models, and what a whole model computes after its first layers."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from layer_surgeon.checkpoint import open_checkpoint
from layer_surgeon.donor.checkpoint_names import checkpoint_names
from layer_surgeon.donor.entrance import plan_entrance
from layer_surgeon.donor.family import family_config
from tests.support.exactness import find_layers
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
    states = []

    def keep(_: object, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states.append((output[0] if isinstance(output, (tuple, list)) else output).detach().clone())

    handle = find_layers(model)[num_layers - 1].register_forward_hook(keep)
    with torch.no_grad():
        model(input_ids=input_ids, attention_mask=attention_mask)
    handle.remove()
    return states[0]
