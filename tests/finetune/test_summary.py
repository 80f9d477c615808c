"""The summary of the data before training; all errors in the data are found before training."""

import pytest

from layer_surgeon.errors import DataError
from layer_surgeon.finetune import finetune_model
from layer_surgeon.finetune.trainer import SurgeonTrainer
from tests.support.classification import Recorder, classifier, rows, word_tokenizer
from tests.support.finetune_tasks import task_tokenizer, tiny_bart, translated_rows


class BegunError(Exception):
    """Training has begun."""


@pytest.fixture
def _no_training(monkeypatch):
    def train(self, *arguments, **keywords):
        raise BegunError

    monkeypatch.setattr(SurgeonTrainer, "train", train)


def notices(data, workspace, model=None, tokenizer=None, **settings):
    """All notices before the first step."""
    progress = Recorder()
    with pytest.raises(BegunError):
        finetune_model(
            model or classifier(num_labels=settings.pop("num_labels", 2)),
            data,
            workspace=workspace,
            tokenizer=tokenizer or word_tokenizer(),
            progress=progress,
            **settings,
        )
    return progress.notices


@pytest.mark.usefixtures("_no_training")
class TestSummary:
    def test_sizes_and_balance(self, workspace):
        made = [*rows(40, labels=("bad", "good")), *({"text": "the film was good", "label": "good"} for _ in range(10))]
        said = notices({"train": made, "test": rows(6, labels=("bad", "good"))}, workspace)
        sizes = "data: 40 train, 10 validation, 6 test examples; validation is 20% of the training data; 2 classes."
        assert sizes in said
        assert "Classes in training: good 60.0%, bad 40.0%." in said
        assert not any(line.startswith("Rare") for line in said)

    def test_rare_classes_are_named(self, workspace):
        made = [*({"text": "the film was good", "label": "good"} for _ in range(98)), *rows(4, labels=("bad", "bad"))]
        said = notices({"train": made, "validation": rows(4, labels=("bad", "good"))}, workspace)
        assert any(line.startswith("Rare in training: bad. Check macro F1") for line in said)

    def test_share_of_cut_texts_of_every_split(self, workspace):
        long = [{"text": " ".join(["film"] * 20), "label": 0}]
        data = {"train": rows(39) + long, "validation": rows(9) + long, "test": rows(9)}
        said = notices(data, workspace, max_length=15)
        assert any(
            "1 of 40 training texts (2.5%) are longer than 15 tokens (--max-length) and will be truncated." in line
            for line in said
        )
        assert any("1 of 10 validation texts (10.0%)" in line for line in said)
        assert not any("of 9 test" in line for line in said)

    def test_written_text(self, workspace):
        data = {"train": translated_rows(20), "validation": translated_rows(4)}
        said = notices(data, workspace, model=tiny_bart(), tokenizer=task_tokenizer(), max_target_length=5)
        assert "data: 20 train, 4 validation examples." in said
        assert any(
            "tokens (source, --max-length) or 5 (target, --max-target-length) and will be truncated." in line
            for line in said
        )


MISTAKES = {
    "no such file": ("nothing.csv", "There is no file"),
    "unknown name": ("sst-2", "Did you mean sst2"),
    "no rows": ([], "empty list"),
    "no label column": ([{"text": "a b", "stars": 1}] * 4, "has no label column. Its columns are: text, stars."),
    "no text column": ([{"label": 1}] * 4, "has no text column"),
    "one class": ([{"text": "a b", "label": 1}] * 4, "only one class"),
    "empty text": ([*rows(9), {"text": " ", "label": 0}], "1 empty texts (rows 10)"),
    "missing label": ([*rows(9), {"text": "a", "label": None}], "row 10: the label is missing"),
    "text as label": ([row | {"label": f"{i} x"} for i, row in enumerate(rows(40))], "probably not classes"),
    "number as label": ([row | {"label": 0.5 + i} for i, row in enumerate(rows(8))], "which is not a class"),
    "odd label in test": ({"train": rows(40), "test": [{"text": "a", "label": 7}]}, "not seen in training: 7 (1 rows)"),
    "empty text in validation": ({"train": rows(40), "dev": [{"text": "", "label": 0}]}, "1 empty texts (rows 1)"),
    "too few rows": (rows(2), "too few to hold out 20%"),
}


@pytest.mark.usefixtures("_no_training")
@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_mistakes_are_found_before_training_and_leave_nothing(mistake, workspace):
    data, says = MISTAKES[mistake]
    with pytest.raises(DataError) as error:
        finetune_model(classifier(), data, workspace=workspace, tokenizer=word_tokenizer())
    assert says in str(error.value)
    assert not workspace.root.exists()
