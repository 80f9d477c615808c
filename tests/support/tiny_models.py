"""Tiny random language models of any family, and layer artifacts made straight from them."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

WIDTH = 32

# Small values for what configs of decoders call their sizes. Only those are set that a family's config has.
_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "ffn_hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": WIDTH,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "sliding_window": 5,
    "rotary_dim": 4,
    "embedding_size": WIDTH,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 96,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 16,
    # attention through a low rank
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    # state spaces and linear attention
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """The family's config with small sizes; `overrides` are set on top, whatever they are."""
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    known = set(default.to_dict()) | set(config_class.attribute_map)
    sizes = {name: value for name, value in _SIZES.items() if name in known}
    if "kv_lora_rank" in known:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    sizes.update(overrides)
    # Both names of one attribute, and the family's own wins: that is what its config.json has.
    for standard, own in config_class.attribute_map.items():
        if standard in sizes and own in sizes:
            del sizes[standard if own in overrides else own]
    return config_class(**sizes)


def tiny_model(model_type: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random causal language model of a family: 4 layers, width 32, in eval mode and float32."""
    return model_from(tiny_config(model_type, **overrides), seed=seed)


def model_from(config: Any, seed: int = 0) -> PreTrainedModel:
    """A random causal language model, all of whose weights are random: biases and norms too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def tiny_llama(*, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A Llama whose RoPE is scaled as that of Llama 3.1."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    return tiny_model("llama", seed=seed, **{"rope_parameters": rope, **overrides})


def save_artifact(model: PreTrainedModel, layer_indices: Sequence[int], folder: Path, dtype: str = "float32") -> Path:
    """Write a layer artifact of a model, with the tensors as its own `save_pretrained` writes them."""
    checkpoint = folder.with_name(f"{folder.name}-checkpoint")
    save_quietly(model, checkpoint)
    return cut_artifact(checkpoint, layer_indices, folder, dtype)


def save_quietly(model: PreTrainedModel, folder: Path, **options: Any) -> None:
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder, **options)
    finally:
        logging.enable_progress_bar()


def cut_artifact(checkpoint: Path, layer_indices: Sequence[int], folder: Path, dtype: str = "float32") -> Path:
    """Write a layer artifact from a checkpoint's single safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
        prefix = layers_prefix(names)
        for position, index in enumerate(layer_indices):
            start = f"{prefix}{index}."
            for name in names:
                if name.startswith(start):
                    tensor = file.get_tensor(name)
                    tensors[f"layers.{position}.{name.removeprefix(start)}"] = tensor.to(
                        getattr(torch, dtype), copy=True
                    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "surgeon_donor",
        "architectures": ["DonorLayer"],
        "donor_config": json.loads((checkpoint / "config.json").read_text()),
        "layer_indices": list(layer_indices),
        "dtype": dtype,
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "source": {"name": "tiny", "kind": "folder", "commit": None, "layer_prefix": f"{prefix}{layer_indices[0]}."},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def layers_prefix(names: Sequence[str]) -> str:
    """What comes before the layer's number in the names of a checkpoint, such as `model.layers.`.

    The prefix with the most tensors and the most different numbers, of those at a module's first number.
    """
    found: dict[str, int] = {}
    for name in names:
        if match := re.match(r"(.*?\.)?(\d+)\.", name):
            prefix = match[1] or ""
            found[prefix] = found.get(prefix, 0) + 1
    return max(found, key=lambda prefix: found[prefix])
