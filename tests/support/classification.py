"""What fine-tuning needs, tiny: rows that can be learned, a tokenizer, a host, a graft."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from tests.support.recorder import Recorder as Recorder

_GOOD = ["good", "great", "lovely", "fine"]
_BAD = ["bad", "awful", "dull", "poor"]
_REST = ["the", "film", "was", "very", "a", "plot", "story", "with", "and", "it", "is", "end", "of", "actor"]
_SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]


def rows(count: int = 40, *, seed: int = 0, labels: tuple[Any, Any] = (0, 1)) -> list[dict[str, Any]]:
    """Sentences of different lengths; a good word makes them positive. Both classes equally often."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        words = rng.choices(_REST, k=rng.randint(2, 9))
        words.insert(rng.randint(0, len(words)), rng.choice(_GOOD if index % 2 else _BAD))
        made.append({"text": " ".join(words), "label": labels[index % 2]})
    return made


def write_csv(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in made))
    return path


def word_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of([*_GOOD, *_BAD, *_REST], model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def tokenizer_of(words: list[str], **settings: Any) -> PreTrainedTokenizerFast:
    """These words and no others, with [CLS] before and [SEP] after a text."""
    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=64,
        **settings,
    )


def bert_config(**settings: Any) -> BertConfig:
    return BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        **settings,
    )


def classifier(*, num_labels: int = 2, seed: int = 0) -> BertForSequenceClassification:
    """A plain model, fresh and always the same."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(bert_config(num_labels=num_labels))


def save_host(folder: Path, *, seed: int = 0) -> Path:
    """A host without a head, with its tokenizer."""
    torch.manual_seed(seed)
    BertModel(bert_config()).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder
