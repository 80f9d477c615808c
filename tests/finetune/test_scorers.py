"""BERTScore and BARTScore: their models are too large for tests, and not being able to have them is no failure."""

import sys

import pytest
import torch

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune import FinetuneConfig, evaluate_model, scorers
from layer_surgeon.finetune.scorers import bart_score, extra_scores
from tests.support.classification import Recorder
from tests.support.finetune_tasks import task_tokenizer, tiny_bart, translated_rows

CPU = torch.device("cpu")


def test_bart_score_is_the_mean_log_probability(tmp_path):
    model, tokenizer = tiny_bart().eval(), task_tokenizer()
    model.save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    written, references = ["eins zwei", "drei"], ["one two three", "four"]
    expected = []
    for text, reference in zip(written, references, strict=True):
        labels = tokenizer(text, return_tensors="pt")["input_ids"]
        source = tokenizer(reference, return_tensors="pt")
        with torch.no_grad():
            expected.append(-float(model(input_ids=source["input_ids"], labels=labels).loss))
    measured = bart_score(written, references, CPU, str(tmp_path / "bart"))
    assert measured == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_what_can_not_be_had_is_left_out_with_a_notice(monkeypatch):
    def missing(*arguments):
        raise OSError("facebook/bart-large-cnn is not a local folder\nand more")

    monkeypatch.setitem(sys.modules, "bert_score", None)
    monkeypatch.setitem(scorers._SCORERS, "bart_score", missing)
    progress = Recorder()
    config = FinetuneConfig(extra_metrics="bert_score, bart_score")
    assert extra_scores(["a"], ["b"], config, CPU, progress) == {}
    assert len(progress.notices) == 2
    assert "bert_score is left out: its model can't be had here (" in progress.notices[0]
    assert progress.notices[1].endswith("(facebook/bart-large-cnn is not a local folder).")


def test_they_are_in_the_metrics(monkeypatch):
    monkeypatch.setitem(scorers._SCORERS, "bart_score", lambda written, references, device: -2.5)
    settings = {"tokenizer": task_tokenizer(), "max_target_length": 4, "num_beams": 1}
    measured = evaluate_model(tiny_bart(), translated_rows(4), extra_metrics="bart_score", **settings).metrics
    assert measured.scores["bart_score"] == -2.5
    assert "bart_score" not in evaluate_model(tiny_bart(), translated_rows(4), **settings).metrics.scores


def test_unknown_metric():
    with pytest.raises(ConfigError, match="extra_metrics is 'blue'; it must be some of bert_score, bart_score"):
        FinetuneConfig(extra_metrics="blue")
