"""Tiny hosts with tokenizers, and a tiny layer artifact. All are created once per test session."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from tests.support.tiny_models import cut_artifact, save_quietly, tiny_llama
from tests.support.tiny_stacks import save_stack

ENCODERS = (
    "bert",
    "roberta",
    "electra",
    "deberta",
    "deberta-v2",
    "distilbert",
    "mpnet",
    "albert",
    "xlm-roberta",
    "modernbert",
)
ENCODER_DECODERS = ("t5", "mt5", "bart", "mbart", "pegasus", "marian")
DECODERS = ("llama", "gpt2", "gpt_neox", "opt", "qwen2")
HOSTS = (*ENCODERS, *ENCODER_DECODERS, *DECODERS)
WIDTH = 24

_WORDS = ["a", "the", "film", "was", "is", "good", "bad", "dull", "very", "not", "and", "plot", "story", "end", "slow"]
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]

_SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": WIDTH,
    "embedding_size": 16,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "word_embed_proj_dim": WIDTH,
    # of two stacks
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 2,
    "num_decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 36,
    "decoder_ffn_dim": 36,
    "d_kv": 6,
    "d_ff": 36,
    # of ModernBERT, which has ids beyond this vocabulary
    "cls_token_id": 1,
    "sep_token_id": 2,
}


def host_config(model_type: str, **overrides: Any) -> Any:
    config_class = CONFIG_MAPPING[model_type]
    # T5's is not in its class, but in every config.json of a T5.
    known = set(config_class().to_dict()) | set(config_class.attribute_map) | {"decoder_start_token_id"}
    return config_class(**{name: value for name, value in _SIZES.items() if name in known} | overrides)


def host_model(model_type: str, *, seed: int = 0, auto: Any = AutoModel, **overrides: Any) -> PreTrainedModel:
    """Create a random model, by default without head. All weights differ from their initial values."""
    torch.manual_seed(seed)
    model = auto.from_config(host_config(model_type, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def word_tokenizer(*, pad: bool = True, **settings: Any) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": "<pad>"} if pad else {})
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **names, **settings
    )


def make_inputs(batch: int = 3, length: int = 9, *, seed: int = 1) -> dict[str, torch.Tensor]:
    """Create full-length rows without padding ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 40, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(autouse=True)
def _no_bars() -> Any:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def llm() -> PreTrainedModel:
    """The donor model: a Llama with the RoPE of Llama 3.1, width 32, 4 layers."""
    return tiny_llama(seed=5)


@pytest.fixture(scope="session")
def artifact(llm: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layer 3 of `llm`."""
    folder = tmp_path_factory.mktemp("donors")
    save_quietly(llm, folder / "llm")
    return cut_artifact(folder / "llm", [3], folder / "tiny-llama-L3")


@pytest.fixture(scope="session")
def stack(llm: PreTrainedModel, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two layers of `llm`, with a table for the 40 tokens of the hosts."""
    return host_table(save_stack(llm, 2, tmp_path_factory.mktemp("stacks") / "tiny-llama-L0-1"), num_tokens=40)


@pytest.fixture(scope="session")
def own_stack(llm: PreTrainedModel, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two layers of `llm`, with its own tokens and a tokenizer: letters, with <s> in front of each text."""
    folder = save_stack(llm, 2, tmp_path_factory.mktemp("stacks") / "tiny-llama-L0-1")
    letters = {letter: index for index, letter in enumerate([*_SPECIAL, *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names).save_pretrained(folder)
    return folder


def host_table(stack: Path, num_tokens: int, sha256: str = "0" * 64) -> Path:
    """Let a stack read the tokens of a host: each of them is the token of the donor with the same id."""
    tensors = load_file(stack / "model.safetensors")
    config = json.loads((stack / "config.json").read_text())
    name = f"embeddings.{config['embeddings']['token_table']}"
    tensors[name] = tensors[name][:num_tokens].clone()
    save_file(tensors, stack / "model.safetensors", {"format": "pt"})
    config["embeddings"]["vocabulary"] = {"name": "tiny-host", "size": num_tokens, "sha256": sha256}
    (stack / "config.json").write_text(json.dumps(config))
    return stack


@pytest.fixture(scope="session")
def host_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny host of a family, with a tokenizer."""
    root = tmp_path_factory.mktemp("hosts")

    def make(model_type: str) -> Path:
        folder = root / model_type
        if not folder.exists():
            save_quietly(host_model(model_type), folder)
            word_tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside of the folders that tests upload or store."""
    path = tmp_path / "home/token"
    path.parent.mkdir()
    path.write_text("hf_secret")
    return path
