"""Fixtures: a tiny Llama with a tokenizer whose tokens are known, and texts of different lengths."""

import pytest
from transformers import AutoTokenizer

from tests.support.numbered_texts import as_text, random_tokens, save_numbered_tokenizer
from tests.support.tiny_models import save_quietly, tiny_llama


@pytest.fixture(scope="session")
def model():
    return tiny_llama()


@pytest.fixture(scope="session")
def source(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    save_quietly(model, folder, max_shard_size="40KB")
    save_numbered_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tokens():
    return random_tokens((5, 9, 3, 9, 12))


@pytest.fixture(scope="session")
def texts(tokens):
    return [as_text(ids) for ids in tokens]


@pytest.fixture(scope="session")
def numbered_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_numbered_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)
