"""Reading each file format; errors in files name the line."""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from layer_surgeon._table_files import iterate_file, read_file, read_files
from layer_surgeon.errors import DataError
from layer_surgeon.finetune.sources import load_data
from tests.support.classification import rows

ROWS = [{"text": 'He said "no",\nand left.', "label": 1}, {"text": "Ünïcode — fine", "label": 0}]
AS_TEXT = {"text": [row["text"] for row in ROWS], "label": ["1", "0"]}
AS_IS = {"text": [row["text"] for row in ROWS], "label": [1, 0]}


def test_csv_with_quotes_newlines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufefftext,label\r\n"He said ""no"",\nand left.",1\r\n\r\nÜnïcode — fine,0\r\n', newline="")
    assert read_file(path) == AS_TEXT


def test_tsv(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('label\ttext\n1\t"He said ""no"",\nand left."\n0\tÜnïcode — fine\n', newline="")
    assert read_file(path) == AS_TEXT


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
def test_json_lines(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    assert read_file(path) == AS_IS


def test_json_list(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=1))
    assert read_file(path) == AS_IS


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert read_file(path) == AS_IS


def test_files_with_different_column_order(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\none,0\n")
    (tmp_path / "b.csv").write_text("label,text\n1,two\n")
    assert read_files([tmp_path / "a.csv", tmp_path / "b.csv"]) == {"text": ["one", "two"], "label": ["0", "1"]}


def test_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.csv"
    for text in ("one", "two"):
        path.write_text(f"text,label\n{text},0\n")
        assert read_file(path)["text"] == [text]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "no rows below its header"),
        ("a.jsonl", "\n\n", "no rows"),
        ("a.csv", "text,text\na,b\n", "has a duplicate column"),
        ("a.csv", "text,label\none,0\ntwo, three,1\n", "line 3: 3 cells, but the header has 2"),
        ("a.csv", 'text,label\n"one,0\n', "line 2: not valid CSV"),
        ("a.jsonl", '{"text": "one", "label": 0}\n{"text": "two", label: 1}\n', "line 2: not valid JSON"),
        ("a.jsonl", '["one", 0]\n', "line 1: found a list; every line must be an object"),
        ("a.jsonl", '{"text": "one", "label": 0}\n{"text": "two"}\n', "row 2: the columns differ from those of row 1"),
        ("a.json", '[{"text": "one"}, 3]', "list of objects"),
        ("a.json", '[\n{"text": "one"},\n{"text": }]', "line 3: not valid JSON"),
        ("a.parquet", "not parquet at all", "not a readable Parquet file"),
        ("a.xlsx", "whatever", "Supported formats: .csv"),
        ("a.csv", b"text,label\nna\xefve,1\n", "is not UTF-8"),
    ],
)
def test_bad_files(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        read_file(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)


def test_error_for_a_missing_file_lists_existing_files(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,0\n")
    with pytest.raises(DataError, match=r"There is no file .*trian\.csv\. Did you mean train\.csv\?"):
        read_file(tmp_path / "trian.csv")
    with pytest.raises(DataError, match=r"There is no file .*x\.csv\. The folder .* contains train\.csv"):
        read_file(tmp_path / "x.csv")
    with pytest.raises(DataError, match="The folder .* does not exist either"):
        read_file(tmp_path / "nowhere" / "train.csv")


def test_folder(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_file(tmp_path)


def test_files_with_other_columns(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\none,0\n")
    (tmp_path / "b.csv").write_text("text,stars\ntwo,5\n")
    with pytest.raises(DataError, match=r"b\.csv has the columns text, stars, but .*a\.csv has text, label"):
        read_files([tmp_path / "a.csv", tmp_path / "b.csv"])


# ---- folders, stdin, SQuAD's own form


def write(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made))


def test_folder_splits_are_found_by_name(tmp_path):
    write(tmp_path / "train-00000-of-00002.jsonl", rows(10))
    write(tmp_path / "train-00001-of-00002.jsonl", rows(6, seed=1))
    write(tmp_path / "dev.jsonl", rows(4))
    write(tmp_path / "test.jsonl", rows(2))
    write(tmp_path / "test_of_another_kind.jsonl", rows(8))
    (tmp_path / "README.md").write_text("not data")
    raw = load_data(str(tmp_path))
    assert {name: len(table) for name, table in raw.splits.items()} == {
        "train": 16,
        "validation": 4,
        "test": 2,
        "test_of_another_kind": 8,
    }
    assert raw.spec == (str(tmp_path),)
    assert (len(raw.train), len(raw.validation), len(raw.test)) == (16, 4, 2)


def test_only_file_of_a_folder_is_the_training_data(tmp_path):
    write(tmp_path / "all.jsonl", rows(10))
    assert len(load_data(str(tmp_path)).train) == 10


def test_folder_in_the_layout_of_the_hub(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", rows(10))
    write(tmp_path / "data" / "validation.jsonl", rows(4))
    assert set(load_data(tmp_path).splits) == {"train", "validation"}


def test_a_folder_without_data(tmp_path):
    with pytest.raises(DataError, match="contains no data files. Supported formats: .csv"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"text,label\na b,1\nc d,0\n",
        b"text\tlabel\na b\t1\nc d\t0\n",
        b'{"text": "a b", "label": 1}\n{"text": "c d", "label": 0}\n',
        b'[{"text": "a b", "label": 1}, {"text": "c d", "label": 0}]',
        b"\xef\xbb\xbftext,label\r\na b,1\r\nc d,0\r\n",
    ],
)
def test_stdin(content, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    raw = load_data("-")
    assert raw.train.columns["text"] == ["a b", "c d"]
    assert [int(value) for value in raw.train.columns["label"]] == [1, 0]
    assert raw.spec == ()


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "stdin is empty"), (b"text,label\na,b,c\n", "stdin, line 2: 3 cells")]
)
def test_bad_stdin(content, says, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(DataError, match=says):
        load_data("-")


def test_squad_as_it_is_published(tmp_path):
    context = "Anna went to Rome."
    found = [{"text": "Rome", "answer_start": 13}]
    questions = [
        {"id": "1", "question": "Where?", "answers": found},
        {"id": "2", "question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": found},
    ]
    document = {"version": "2.0", "data": [{"title": "A", "paragraphs": [{"context": context, "qas": questions}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(document))
    columns = load_data(tmp_path / "dev.json").train.columns
    assert columns["question"] == ["Where?", "Why?"]
    assert columns["answers"] == [found, []]
    assert columns["context"] == [context, context]


CONLL = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n# a comment\nPeter NNP B-PER\n\n"


def test_conll_files_are_texts_of_words_and_tags(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text(CONLL)
    texts = [{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, {"tokens": ["Peter"], "tags": ["B-PER"]}]
    assert read_file(path) == {name: [text[name] for text in texts] for name in ("tokens", "tags")}
    assert list(iterate_file(path)) == texts
    (tmp_path / "tabs.bio").write_text("New York\tB-LOC\n")
    assert read_file(tmp_path / "tabs.bio") == {"tokens": [["New York"]], "tags": [["B-LOC"]]}
    (tmp_path / "tabs.bio").write_text("#\tO\nsunny\tB-TAG\n")
    assert read_file(tmp_path / "tabs.bio") == {"tokens": [["#", "sunny"]], "tags": [["O", "B-TAG"]]}


@pytest.mark.parametrize(
    ("content", "line", "found"), [("EU B-ORG\nrejects\n", 2, 1), ("EU\n", 1, 1), ("a b O\n\nc O\n", 3, 2)]
)
def test_lines_of_conll_files_that_cant_be_read(tmp_path, content, line, found):
    path = tmp_path / "train.conll"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"line {line}: {found} columns; expected \d: a word first and its label last"):
        read_file(path)
