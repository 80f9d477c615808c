"""The configs of the models in the paper's table 20, as their publishers have them on the Hub (what sets shapes)."""

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
_DEBERTA: dict[str, Any] = _BASE | {
    "type_vocab_size": 0,
    "relative_attention": True,
    "max_relative_positions": -1,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}

HOSTS: dict[str, dict[str, Any]] = {
    "BERT-base": _BASE | {"model_type": "bert", "vocab_size": 30522, "type_vocab_size": 2},
    "RoBERTa-base": _BASE
    | {"model_type": "roberta", "vocab_size": 50265, "type_vocab_size": 1, "max_position_embeddings": 514},
    "ELECTRA-base": _BASE | {"model_type": "electra", "vocab_size": 30522, "type_vocab_size": 2, "embedding_size": 768},
    "DeBERTa-base": _DEBERTA | {"model_type": "deberta", "vocab_size": 50265},
    "DeBERTa-V3-base": _DEBERTA
    | {
        "model_type": "deberta-v2",
        "vocab_size": 128100,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "T5-base": {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 3072,
        "num_layers": 12,
        "num_decoder_layers": 12,
        "num_heads": 12,
    },
    "BART-base": {
        "model_type": "bart",
        "vocab_size": 50265,
        "d_model": 768,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        "max_position_embeddings": 1024,
    },
}


def _donor(model_type: str, hidden: int, inner: int, layers: int, heads: int, key_value: int, vocabulary: int, **more):
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value,
        "vocab_size": vocabulary,
        **more,
    }


DONORS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": _donor("llama", 4096, 14336, 32, 32, 8, 128256),
    "Mistral-7B-v0.1": _donor("mistral", 4096, 14336, 32, 32, 8, 32000, sliding_window=4096),
    "Mistral-7B-v0.3": _donor("mistral", 4096, 14336, 32, 32, 8, 32768, sliding_window=None),
    "Qwen2-0.5B": _donor("qwen2", 896, 4864, 24, 14, 2, 151936),
    "Qwen2-1.5B": _donor("qwen2", 1536, 8960, 28, 12, 2, 151936),
    "Qwen2-7B": _donor("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "Gemma-2-9B": _donor("gemma2", 3584, 14336, 42, 16, 8, 256000, head_dim=256),
    "Falcon-7B": {
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "vocab_size": 65024,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "bias": False,
        "alibi": False,
    },
    "Llama-3.1-70B": _donor("llama", 8192, 28672, 80, 64, 8, 128256),
}


def paper_host(name: str) -> PretrainedConfig:
    """A fresh config of one of the hosts."""
    return CONFIG_MAPPING[HOSTS[name]["model_type"]](**HOSTS[name])
