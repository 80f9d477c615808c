"""The formulas of grafts in plain torch, with the layer called as its own Llama calls it; nothing of ours is used."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def run_layer(llm: Any, states: Tensor, mask: Tensor, *, causal: bool, index: int = 3) -> Tensor:
    """L_LLM on [batch, seq, width] at positions 0 to seq - 1, where only padding attends to padding."""
    length = states.shape[1]
    positions = torch.arange(length)[None]
    seen = mask.bool()[:, None, :].expand(-1, length, -1)
    if causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool).tril()
    seen = seen | torch.eye(length, dtype=torch.bool)
    out = llm.model.layers[index](
        states,
        position_embeddings=llm.model.rotary_emb(states, positions),
        attention_mask=torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None],
        position_ids=positions,
    )
    return out[0] if isinstance(out, tuple) else out


def run_graft(llm: Any, model: Any, hidden: Tensor, mask: Tensor, *, causal: bool, gate: float | None = None) -> Tensor:
    """L_out(L_LLM(L_in(h))); with a gate, h + gate x that."""
    out = run_layer(llm, hidden @ model.proj_in.weight.T, mask, causal=causal) @ model.proj_out.weight.T
    return out if gate is None else hidden + gate * out


def run_reader(llm: Any, model: Any, ids: Tensor, mask: Tensor, *, pooled: bool) -> Tensor:
    """L_out(Norm(d)) of a donor that reads the text: d are the states after the first layers, or their mean.

    Norm is a LayerNorm, with a fixed mean and scale before its weight and bias.
    """
    states = model.donor.entrance.model.embed_tokens.weight[ids]
    for index in model.donor.layers.layer_indices:
        states = run_layer(llm, states, mask, causal=True, index=index)
    if pooled:
        states = torch.stack([row[keep].mean(dim=0) for row, keep in zip(states, mask.bool(), strict=True)])
    norm = model.donor_norm
    centred = states - states.mean(dim=-1, keepdim=True)
    unscaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return ((unscaled - norm.mean) * norm.scale * norm.weight + norm.bias) @ model.proj_out.weight.T


def run_head(head: Any, vectors: Tensor) -> Tensor:
    """Linear, Dropout (off), GELU, Linear."""
    inner = functional.gelu(vectors @ head.dense.weight.T + head.dense.bias)
    return inner @ head.out.weight.T + head.out.bias


def tokens_of(values: Tensor, mask: Tensor) -> Tensor:
    """The rows of [batch, seq, ...] that aren't padding, where what comes out is of no meaning."""
    return values[mask.bool()]
