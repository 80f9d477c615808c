"""Every mistake in data is found before training: before the first step, and before anything is written."""

import ast
import io
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from transformers import BertForQuestionAnswering, BertForTokenClassification

import layer_surgeon.finetune as room
from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.finetune import finetune_model, sources
from layer_surgeon.finetune.registry import DatasetRecord
from layer_surgeon.finetune.trainer import SurgeonTrainer
from tests.support.classification import classifier, rows, word_tokenizer
from tests.support.finetune_tasks import bert, question_rows, tagged_rows, task_tokenizer, tiny_bart, tiny_gpt2

MODELS = {
    "text-classification": classifier,
    "token-classification": lambda: bert(BertForTokenClassification, num_labels=3),
    "question-answering": lambda: bert(BertForQuestionAnswering),
    "seq2seq": tiny_bart,
    "causal-lm": tiny_gpt2,
}
PAGE = "anna went to rome ."


def file(name, content):
    """A file with this content."""

    def write(folder):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def files(folder):
    for name, header in (("a.csv", "text,label"), ("b.csv", "text,stars")):
        (folder / name).write_text(f"{header}\na b,1\n")
    return [folder / "a.csv", folder / "b.csv"]


def column_twice(folder):
    """A Parquet file with two columns of one name."""
    table = pyarrow.Table.from_arrays([pyarrow.array(["a b"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


def saved(folder):
    """A folder of the datasets library."""
    datasets.Dataset.from_list(rows(4)).save_to_disk(folder / "saved")
    return folder / "saved"


def folder_and_file(folder):
    return [folder, folder / "a.csv"]


def broken_disk(folder):
    """A file that exists but can't be read."""
    path = folder / "a.csv"
    path.write_text("text,label\na b,1\n")
    return SimpleNamespace(path=path)


def packaged(content):
    """A named data set whose file has this content."""
    return SimpleNamespace(packaged=content)


def stdin(content):
    return SimpleNamespace(stdin=content)


def odd(made, at, **changed):
    """Rows, with some cells of row `at` (from 1) replaced."""
    return [row | (changed if index == at else {}) for index, row in enumerate(made, start=1)]


def asked(**changed):
    return odd(question_rows(20), 3, **changed)


def tagged(**changed):
    return odd(tagged_rows(20), 3, **changed)


HUB = ConnectionError("Couldn't reach the Hub")
# Data, expected message and, if needed, settings (with the task) and the type of the error.
MISTAKES = {
    # ---- sources
    "no data": (3, "The data has the type int. Expected a name, files, a datasets.Dataset, or rows."),
    "no rows": ([], "The data is an empty list. Pass at least one row."),
    "no splits": ({}, "The data is an empty dict. Pass at least one split."),
    "rows that are none": ([1, 2], "contain a row of the type int. Rows must be dicts"),
    "split that is none": ({"train": 3}, "Split 'train' has the type int; it must be a datasets.Dataset"),
    "no training split": (
        {"one": rows(4), "two": rows(4)},
        "data has no train split. Its splits are: one, two. Name a file",
    ),
    "unknown name": ("sst-2", "There is no data set or file 'sst-2'. Did you mean sst2"),
    "name like no other": ("zzzz", "The data sets are: sst2, imdb"),
    "name of another task": ("squad", "squad is a data set for question-answering, but the model is for"),
    "name without a copy": ("filmstarts", "filmstarts can't be loaded by name. No copy on the Hub is known to us."),
    "Hub id": ("some/thing", "The data set some/thing can't be loaded from the Hub: Couldn't reach the Hub. Check the"),
    "named set of the Hub": ("imdb", "The data set stanfordnlp/imdb can't be loaded from the Hub"),
    "folder without data": (lambda folder: folder, "contains no data files. Supported formats: .csv, .tsv"),
    "folder among files": (folder_and_file, "is a folder. Name its files instead"),
    "stream": (
        datasets.Dataset.from_list(rows(4)).to_iterable_dataset(),
        "can only be streamed. Set streaming=True",
    ),
    # ---- files
    "missing file": ("nothing.csv", "There is no file nothing.csv."),
    "other kind of file": (file("a.xls", "x"), "has the unknown suffix '.xls'. Supported formats: .csv, .tsv, .jsonl"),
    "empty file": (file("a.csv", ""), "a.csv is empty (0 bytes)."),
    "header alone": (file("a.csv", "text,label\n"), "a.csv has no rows below its header."),
    "no UTF-8": (file("a.csv", b"text,label\n\xff,1\n"), "a.csv is not UTF-8 text (byte"),
    "column twice": (file("a.csv", "text,text\na,b\n"), "has a duplicate column in its header: text, text."),
    "Parquet column twice": (column_twice, "has a duplicate column in its header: text, text."),
    "quoted rows of TSV": (
        file("a.tsv", 'text\tlabel\n"a\t0\nb\t1\nc"\t0\n'),
        "a.tsv, line 4: a cell that begins with a double quote goes on over several rows.",
    ),
    "empty name": ("", "The name of a data set or file is empty."),
    "data of save_to_disk": (saved, "was written by save_to_disk of the datasets library."),
    "bytes as labels": ([{"text": "a b", "label": b"0"}] * 4, "row 1: the label is b'0', but one class per row"),
    "too few cells": (file("a.csv", "text,label\na b\n"), "a.csv, line 2: 1 cells, but the header has 2"),
    "too many cells in TSV": (file("a.tsv", "text\tlabel\na\tb\tc\n"), "a.tsv, line 2: 3 cells, but the header has 2"),
    "no CSV": (file("a.csv", 'text,label\n"a"b,1\n'), "a.csv, line 2: not valid CSV"),
    "no JSON lines": (file("a.jsonl", '{"text": "a"}\n{"text"\n'), "a.jsonl, line 2: not valid JSON"),
    "line that is no object": (file("a.jsonl", "[1]\n"), "a.jsonl, line 1: found a list; every line must be an object"),
    "row with other columns": (
        file("a.jsonl", '{"text": "a", "label": 1}\n{"text": "a"}\n'),
        "a.jsonl, row 2: the columns differ from those of row 1 (label).",
    ),
    "no JSON": (file("a.json", "[{]"), "a.json, line 1: not valid JSON"),
    "number of 5,000 digits": (file("a.json", f'[{{"text": {"9" * 5000}}}]'), "a.json: the JSON can't be read"),
    "such a number in JSON lines": (file("a.jsonl", f'{{"text": {"9" * 5000}}}'), "line 1: the JSON can't be read"),
    "JSON that is no list of objects": (file("a.json", "[1]"), "a.json must contain a list of objects, or one object"),
    "no Parquet": (file("a.parquet", "x"), "a.parquet is not a readable Parquet file"),
    "files of other columns": (files, "b.csv has the columns text, stars, but"),
    "file that can't be read": (broken_disk, "a.csv can't be read: Input/output error."),
    "empty stdin": (stdin(""), "stdin is empty (0 bytes)."),
    "bad line of stdin": (stdin("text,label\na b\n"), "stdin, line 2: 1 cells, but the header has 2"),
    # ---- columns
    "no label column": (
        [{"text": "a b", "lable": 1}] * 4,
        "has no label column. Its columns are: text, lable. Did you",
    ),
    "no text column": ([{"label": 1}] * 4, "has no text column. Its columns are: label."),
    "named column": (rows(4), "has no label column 'stars'. Its columns are: text, label.", {"label_column": "stars"}),
    "named pair": (rows(4), "has no text_pair column 'other'", {"text_pair_column": "other"}),
    "column of a named set": ("sentences-imdb", "has no text column 'body'", {"text_column": "body"}),
    "column missing in a named set": (packaged("text,stars\na,1\n"), "sentences-imdb has no label column 'label'."),
    "no context": ([{"question": "a ?", "answers": "a"}] * 4, "has no context column", {"task": "question-answering"}),
    "no answers": ([{"question": "a ?", "context": "a"}] * 4, "has no answers column", {"task": "question-answering"}),
    "no tags": ([{"tokens": ["a"]}] * 4, "has no tags column", {"task": "token-classification"}),
    "no target": ([{"source": "a b", "n": 1}] * 4, "has no target column", {"task": "seq2seq"}),
    "no text": ([{"n": 1}] * 4, "has no text column", {"task": "causal-lm"}),
    # ---- labels
    "missing label": (odd(rows(9), 5, label=None), "row 5: the label is missing."),
    "blank label": (odd(rows(9), 5, label=" "), "row 5: the label is missing."),
    "list as label": (odd(rows(9), 1, label=[1]), "row 1: the label is [1], but one class per row is expected."),
    "number as label": (odd(rows(9), 5, label=0.5), "has the label 0.5, which is not a class."),
    "one class": ([{"text": "a b", "label": 1}] * 4, "has only one class, 1."),
    "text as label": ([row | {"label": f"{i} x"} for i, row in enumerate(rows(40))], "40 different labels in 40 rows"),
    "undeclared label": (
        packaged("text,label\na b,0\nc d,2\n"),
        "the label 2; the data set's classes are 0 (negative), 1 (positive).",
    ),
    "new label in validation": ({"train": rows(40), "dev": [{"text": "a", "label": 7}]}, "not seen in training: 7 (1"),
    "new label in test": ({"train": rows(40), "test": [{"text": "a", "label": 7}]}, "not seen in training: 7 (1 rows)"),
    "hidden labels": ({"train": rows(40), "dev": [{"text": "a", "label": -1}]}, "labels are hidden; use another"),
    # ---- texts
    "empty text": (odd(rows(9), 4, text=" "), "column 'text': 1 empty texts (rows 4)."),
    "no text in a row": (odd(rows(9), 4, text=None), "column 'text': 1 empty texts (rows 4)."),
    "empty text in validation": ({"train": rows(40), "dev": [{"text": "", "label": 0}]}, "1 empty texts (rows 1)"),
    "empty text in test": ({"train": rows(40), "test": [{"text": "", "label": 0}]}, "1 empty texts (rows 1)"),
    "empty second text": (
        odd([row | {"text_pair": "a b"} for row in rows(9)], 2, text_pair=""),
        "column 'text_pair': 1 empty texts (rows 2).",
    ),
    "half a character": (odd(rows(9), 4, text="cut \ud83d"), "row 4: the text has half a character"),
    "number as text": (odd(rows(9), 4, text=7), "row 4: found 7 of the type int, but expected a text"),
    "no rows in a split": ({"train": rows(9), "test": []}, "the given rows (test) has no rows."),
    "no labels in a split": (
        {"train": rows(9), "dev": [{"text": "a b"}]},
        "has no column 'label', which the training",
    ),
    "no rows that can be used": (packaged("text,label\n ,0\n"), "sentences-imdb has no rows."),
    "too few rows to hold out": (rows(2), "2 training rows are too few to hold out 20% for validation."),
    # ---- words
    "no list of labels": (
        tagged(ner_tags=3),
        "1 rows have no list of labels (rows 3).",
        {"task": "token-classification"},
    ),
    "labels for words": (tagged(ner_tags=["O"]), "but 1 labels ('ner_tags').", {"task": "token-classification"}),
    "empty word": (tagged(tokens=["a", " "]), "row 3: ' ' is not a word.", {"task": "token-classification"}),
    "no words": (tagged(tokens=[]), "1 empty texts (rows 3)", {"task": "token-classification"}),
    # ---- questions
    "no answer": (asked(answers=[3]), "row 3: 3 is not an answer. Expected", {"task": "question-answering"}),
    "answer elsewhere": (
        asked(context=PAGE, answers={"text": ["rome"], "answer_start": [1]}),
        "row 3: the answer 'rome' is not at character 1 of the text; it begins at 13.",
        {"task": "question-answering"},
    ),
    "answer nowhere": (asked(answers="berne"), "the text does not contain it", {"task": "question-answering"}),
    "answers and places": (
        asked(answers={"text": ["a"], "answer_start": []}),
        "text and answer_start must be lists of the same length",
        {"task": "question-answering"},
    ),
    "long question": (
        asked(question="where " * 30),
        "question 3 has 30 tokens, which leaves 7 for a window of the text, but consecutive windows share 10",
        {"task": "question-answering", "max_length": 40, "validation": question_rows(4)},
        ConfigError,
    ),
    # ---- text generation
    "empty target": ([{"en": "one", "de": ""}] * 9, "column 'de': 9 empty texts", {"task": "seq2seq"}),
    "one token": ([{"text": "one"}] * 2, "All texts together have 1 tokens, but at least 2", {"task": "causal-lm"}),
    # ---- settings of data
    "no room": (
        rows(9),
        "max_length is 2, but 2 tokens are special tokens. Set it to at least 3.",
        {"max_length": 2},
        ConfigError,
    ),
    "no share": (rows(9), "train_fraction is 0; it must be above 0 and at most 1.", {"train_fraction": 0}, ConfigError),
    "no samples": (rows(9), "max_train_samples is 0; it must be", {"max_train_samples": 0}, ConfigError),
    "all held out": (rows(9), "validation_fraction is 1; it must be", {"validation_fraction": 1}, ConfigError),
}
# Errors that a training run can't cause.
ELSEWHERE = {
    "sources.py": ("no split {split!r}", "with --split (surgeon evaluate)"),
    "_table_files.py": ("can't be streamed",),
    "_conll.py": ("columns; expected",),
    "text_classification.py": ("inputs mix", "two texts"),
    "question_answering.py": ("needs pairs",),
    "token_classification.py": ("is not a list of labels",),
}
SEEN = set()


@pytest.fixture
def _nothing_begins(monkeypatch):
    """No step, and no Hub."""

    def fail(*arguments, **keywords):
        raise HUB

    monkeypatch.setattr(SurgeonTrainer, "__init__", lambda *a, **k: pytest.fail("training began"))
    monkeypatch.setattr(sources, "load_dataset", fail)


def given(data, tmp_path, monkeypatch):
    """Create the data of a test case."""
    folder = tmp_path / "data"
    folder.mkdir()
    if hasattr(data, "packaged"):
        path = folder / "a.csv"
        path.write_text(data.packaged)
        monkeypatch.setattr(DatasetRecord, "packaged_path", lambda self: path)
        return "sentences-imdb"
    if callable(data):
        data = data(folder)
    if hasattr(data, "stdin"):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data.stdin.encode())))
        return "-"
    if isinstance(data, SimpleNamespace):
        whole = Path.open

        def broken(self, *arguments, **keywords):
            if self == data.path:
                raise OSError(5, "Input/output error")
            return whole(self, *arguments, **keywords)

        monkeypatch.setattr(Path, "open", broken)
        return data.path
    return data


@pytest.mark.usefixtures("_nothing_begins")
@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistake_is_found_before_training(name, tmp_path, workspace, monkeypatch):
    data, says, *rest = MISTAKES[name]
    settings = dict(rest[0]) if rest else {}
    kind = rest[1] if len(rest) > 1 else DataError
    data = given(data, tmp_path, monkeypatch)
    task = settings.pop("task", "text-classification")
    tokenizer = word_tokenizer() if task == "text-classification" else task_tokenizer()
    if name == "one token":
        tokenizer = lone_tokens(tokenizer)
        settings["validation"] = [{"text": "one two three"}]
        data = data[:1]
    model, output = MODELS[task](), tmp_path / "runs" / "run"
    with pytest.raises(kind) as error:
        finetune_model(model, data, task=task, output=output, workspace=workspace, tokenizer=tokenizer, **settings)
    assert says in str(error.value), str(error.value)
    assert not workspace.root.exists()
    assert not output.parent.exists()
    note(error.value)


def lone_tokens(tokenizer):
    """The tokenizer without special tokens at both ends, and without one for the end."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["post_processor"] = None
    backend = type(tokenizer.backend_tokenizer).from_str(json.dumps(content))
    return type(tokenizer)(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def note(error):
    """The lines that raised it, in the files that read data."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            SEEN.add((Path(trace.tb_frame.f_code.co_filename).name, trace.tb_lineno))
            trace = trace.tb_next
        error = error.__cause__


def test_every_data_error_has_a_test():
    """The tests above reach every line that raises a DataError while reading data, except in predictions."""
    if len(SEEN) == 0:
        pytest.skip("the tests above ran elsewhere")
    root = Path(room.__file__).parent
    read = ["data", "sources", "columns", "labels", "examples", "registry"]
    tables = [root.parent / "_table_files.py", root.parent / "_conll.py"]
    missing = []
    for path in [*tables, *(root / f"{name}.py" for name in read), *(root / "tasks").glob("*.py")]:
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            text = ast.get_source_segment(source, node)
            elsewhere = any(words in text for words in ELSEWHERE.get(path.name, ()))
            lines = {(path.name, line) for line in range(node.lineno, node.end_lineno + 1)}
            if "DataError" in text and not elsewhere and not lines & SEEN:
                missing.append(f"{path.name}:{node.lineno}: {text.splitlines()[0]}")
    assert not missing, "\n".join(missing)
