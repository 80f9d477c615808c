"""Texts from files, the Hub and lists, their tokens, and what is refused."""

import base64
import json

import pytest
from datasets import Dataset
from transformers import CONFIG_MAPPING, AutoTokenizer, PretrainedConfig

from layer_surgeon._checkpoint_tokenizer import load_checkpoint_tokenizer
from layer_surgeon.checkpoint import open_checkpoint
from layer_surgeon.errors import DataError, SourceNotFoundError
from layer_surgeon.progress import NullProgress
from layer_surgeon.run import text_list
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.run.text_list import TextList, read_texts
from layer_surgeon.run.tokenizing import tokenize_texts
from tests.support.checkpoints import TINY, write_sparse_checkpoint
from tests.support.gguf_models import VOCABULARY, write_model
from tests.support.recorder import Recorder


def read(texts, column=None):
    return read_texts(texts, column, NullProgress())


def test_files(tmp_path):
    rows = [{"text": "one", "label": 0}, {"text": "two, and", "label": 1}]
    (tmp_path / "a.csv").write_text('text,label\none,0\n"two, and",1\n')
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("one\n\ntwo, and\n")
    for name in ("a.csv", "a.jsonl", "a.parquet", "a.txt"):
        assert read(tmp_path / name) == TextList(texts=("one", "two, and"), location=str(tmp_path / name))


def test_columns(tmp_path):
    (tmp_path / "a.csv").write_text("review,sentence\nA,B\n")
    assert read(tmp_path / "a.csv").texts == ("B",)
    assert read(tmp_path / "a.csv", "review").texts == ("A",)
    with pytest.raises(DataError, match="has no column 'text'; its columns are review, sentence. Name .*--text-column"):
        read(tmp_path / "a.csv", "text")
    (tmp_path / "b.csv").write_text("review,title\nA,B\n")
    with pytest.raises(DataError, match="has several columns; its columns are review, title. Name the one with"):
        read(tmp_path / "b.csv")


def test_hub_data_set(monkeypatch):
    splits = {"test": Dataset.from_dict({"text": ["x"]}), "train": Dataset.from_dict({"text": ["y", "z"]})}
    monkeypatch.setattr(text_list, "load_dataset", lambda name: splits)
    assert read("owner/data").texts == ("y", "z")
    monkeypatch.setattr(text_list, "load_dataset", lambda name: {"a": splits["test"], "b": splits["train"]})
    with pytest.raises(DataError, match="owner/data has no split 'train', but a, b. Save one of them to a file"):
        read("owner/data")

    def fail(name):
        raise OSError("no network")

    monkeypatch.setattr(text_list, "load_dataset", fail)
    with pytest.raises(DataError, match="no file owner/data, and the data set owner/data can't be loaded.*no network"):
        read("owner/data")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", r"empty.txt has no texts. Add at least one"),
        ("empty.csv", b"", r"empty.csv is empty \(0 bytes\)"),
        ("header.csv", b"text\n", "has no rows below its header"),
        ("blank.csv", b'text,n\n"  ",1\n', "Text 1 of .*blank.csv is empty; each text must be a non-empty string"),
        (
            "number.jsonl",
            b'{"text": 3}\n',
            "Text 1 of .*number.jsonl has the type int; each text must be a non-empty string",
        ),
        ("latin.txt", "é".encode("latin-1"), "not UTF-8 text .byte 0 can't be decoded"),
        ("texts.doc", b"x", "has the unknown suffix '.doc'. Supported formats: .csv"),
    ],
)
def test_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_missing_texts(tmp_path):
    with pytest.raises(DataError, match=r"There is no file .*none\.txt. Check its name"):
        read(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"There is no file nothing. Expected a \.txt file or one of \.csv"):
        read("nothing")
    with pytest.raises(DataError, match=r"There is no file ~no-such-user/a\.txt"):
        read("~no-such-user/a.txt")
    with pytest.raises(DataError, match="can't be the name of a file .*Give texts as a list"):
        read("a long text " * 100)
    with pytest.raises(DataError, match="the list of texts has no texts"):
        read([])
    with pytest.raises(DataError, match="Text 2 of the list of texts has half a character"):
        read(["whole", "cut \ud83d"])
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="folder.txt can't be read: Is a directory"):
        read(tmp_path / "folder.txt")


def tokenize(tokenizer, *texts, positions=None, family=None, progress=None, **settings):
    family = family or PretrainedConfig(max_position_embeddings=positions)
    texts = TextList(texts=texts, location="texts.txt")
    return tokenize_texts(tokenizer, texts, family, RunConfig(**settings), progress or NullProgress())


def test_long_texts(numbered_tokenizer):
    progress = Recorder()
    tokenized = tokenize(numbered_tokenizer, "w3 w4 w5", "w6", positions=2, progress=progress)
    assert tokenized.ids == ((3, 4), (6,))
    assert tokenized.num_truncated == 1
    assert progress.notices == ["1 of 2 texts have more than 2 tokens and are truncated."]
    assert tokenize(numbered_tokenizer, "w3 w4 w5", positions=2, max_length=1).lengths == (1,)
    assert tokenize(numbered_tokenizer, "w3 w4 w5").lengths == (3,)
    with pytest.raises(
        DataError, match=r"Text 2 of texts.txt has 3 tokens, more than the limit of 2, and 1 more texts"
    ):
        tokenize(numbered_tokenizer, "w3", "w3 w4 w5", "w1 w1 w1", positions=2, long_texts="refuse")


@pytest.mark.parametrize(
    ("family", "positions"),
    [
        ("mpt", {"max_seq_len": 8}),
        ("gpt2", {"n_positions": 8}),
        ("roberta", {"max_position_embeddings": 10}),
        ("camembert", {"max_position_embeddings": 10}),
        ("xlm-roberta", {"max_position_embeddings": 10}),
        ("xlm-roberta-xl", {"max_position_embeddings": 10}),
        ("xmod", {"max_position_embeddings": 10}),
        ("data2vec-text", {"max_position_embeddings": 10}),
        ("roberta-prelayernorm", {"max_position_embeddings": 10}),
        ("bert", {"max_position_embeddings": 8}),
    ],
)
def test_positions_of_families(numbered_tokenizer, family, positions):
    """RoBERTa and similar families start at the position after their padding id, which is 1."""
    config = CONFIG_MAPPING[family](**positions)
    assert tokenize(numbered_tokenizer, " ".join(["w3"] * 20), family=config).lengths == (8,)


def test_text_without_tokens(numbered_tokenizer):
    with pytest.raises(DataError, match="Text 2 of texts.txt has no tokens for this model's tokenizer"):
        tokenize(numbered_tokenizer, "w3", "")


def test_no_tokenizer(source, tmp_path):
    for file in source.iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SourceNotFoundError, match=f"{tmp_path} has no tokenizer that can be loaded .*tokenizer.json"):
        load_checkpoint_tokenizer(open_checkpoint(tmp_path))


def test_tekken_tokenizer(tmp_path):
    """Mistral's own format. transformers reads it in place of tokenizer.json."""
    write_sparse_checkpoint(tmp_path, TINY | {"model_type": "mistral"}, [])
    tokens = [*(bytes([value]) for value in range(256)), b"th", b"the"]
    tekken = {
        "config": {
            "pattern": r"\p{L}+|\s+",
            "default_vocab_size": 260,
            "default_num_special_tokens": 2,
            "version": "v3",
        },
        "vocab": [{"rank": rank, "token_bytes": base64.b64encode(token).decode()} for rank, token in enumerate(tokens)],
        "special_tokens": [{"rank": rank, "token_str": token} for rank, token in enumerate(("<s>", "</s>"))],
    }
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))
    assert load_checkpoint_tokenizer(open_checkpoint(tmp_path)).tokenize("the") == ["the"]


def test_gguf_without_tokenizer(tmp_path):
    write_model(tmp_path / "model.gguf", "llama", "F32")
    with pytest.raises(SourceNotFoundError, match=r"model\.gguf has no tokenizer that can be loaded"):
        load_checkpoint_tokenizer(open_checkpoint(tmp_path / "model.gguf"))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "phi3", "falcon"])
def test_gguf_tokenizers_are_those_of_transformers(tmp_path, architecture):
    # transformers 5.17 needs the last two, for some families.
    scores = [0.0] * len(VOCABULARY["tokenizer.ggml.tokens"])
    header = {**VOCABULARY, "tokenizer.ggml.scores": scores, "tokenizer.ggml.padding_token_id": 1}
    write_model(tmp_path / "model.gguf", architecture, "F32", general=header)
    loaded = load_checkpoint_tokenizer(open_checkpoint(tmp_path / "model.gguf"))
    expected = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert type(loaded) is type(expected)
    assert loaded.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    assert loaded.special_tokens_map == expected.special_tokens_map
