"""Tiny models, and data, for every task of fine-tuning."""

import random
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from layer_surgeon.errors import DataError
from layer_surgeon.finetune import FinetuneConfig, FinetuneResult, finetune_model
from layer_surgeon.finetune.tasks import TaskContext
from layer_surgeon.workspace import Workspace
from tests.support.classification import bert_config, tokenizer_of

_FAST = {"num_epochs": 1, "batch_size": 8, "learning_rate": 5e-3, "max_length": 40}
_NAMES = ["anna", "bob", "carl", "dora"]
_PLACES = ["rome", "paris", "berlin"]
_REST = ["the", "went", "to", "saw", "and", "then", "a", "in", "day", "who", "where", "?", "."]
_SOURCE = ["one", "two", "three", "four"]
_TARGET = ["eins", "zwei", "drei", "vier"]


def task_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """Words of all tasks; a text's end is the end of what is written."""
    return tokenizer_of([*_NAMES, *_PLACES, *_REST, *_SOURCE, *_TARGET], eos_token="[SEP]", **settings)


def tagged_rows(count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        words = [rng.choice(_NAMES), "went", "to", rng.choice(_PLACES), *rng.choices(_REST[:9], k=rng.randint(0, 5))]
        tags = ["B-PER", "O", "O", "B-LOC", *["O"] * (len(words) - 4)]
        made.append({"tokens": words, "ner_tags": tags})
    return made


def question_rows(count: int = 40, seed: int = 0, *, unanswerable: bool = False) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    made = []
    for index in range(count):
        name, place = rng.choice(_NAMES), rng.choice(_PLACES)
        before = " ".join(rng.choices(["the", "day", "and", "a"], k=rng.randint(1, 12)))
        context = f"{before} {name} went to {place} ."
        answer = name if index % 2 else place
        found = {"text": [answer], "answer_start": [context.index(answer)]}
        if unanswerable and index % 4 == 0:
            found = {"text": [], "answer_start": []}
        question = "who went ?" if index % 2 else "where ?"
        made.append({"id": str(index), "question": question, "context": context, "answers": found})
    return made


def translated_rows(count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        chosen = [rng.randrange(4) for _ in range(rng.randint(2, 5))]
        made.append({"en": " ".join(_SOURCE[i] for i in chosen), "de": " ".join(_TARGET[i] for i in chosen)})
    return made


def tiny_bart(seed: int = 0) -> BartForConditionalGeneration:
    torch.manual_seed(seed)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=40,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
    )


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=2)
    )


def bert(kind: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    return kind(bert_config(**settings))


def train(model: Any, workspace: Workspace, data: Any, **arguments: Any) -> FinetuneResult:
    return finetune_model(model, data, workspace=workspace, tokenizer=task_tokenizer(), **(_FAST | arguments))


def context_of(model: Any, **settings: Any) -> TaskContext:
    return TaskContext(tokenizer=task_tokenizer(), model=model, config=FinetuneConfig(**settings))


def refused(model: Any, workspace: Workspace, data: Any, says: str) -> None:
    """Before anything is trained or written."""
    with pytest.raises(DataError) as error:
        train(model, workspace, data)
    assert says in str(error.value), str(error.value)
    assert not workspace.root.exists()
