"""BERTScore and BARTScore, without their large models; an unavailable model is not an error."""

import sys

import pytest
import torch
from transformers import BertModel

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune import FinetuneConfig, evaluate_model, scorers
from layer_surgeon.finetune.scorers import bart_score, bert_score, extra_scores
from tests.support.classification import Recorder, bert_config, word_tokenizer
from tests.support.finetune_tasks import task_tokenizer, tiny_bart, train, translated_rows

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


def test_unavailable_metric_is_skipped_with_a_notice(monkeypatch):
    def missing(*arguments):
        raise OSError("facebook/bart-large-cnn is not a local folder\nand more")

    monkeypatch.setitem(sys.modules, "bert_score", None)
    monkeypatch.setitem(scorers._SCORERS, "bart_score", missing)
    progress = Recorder()
    config = FinetuneConfig(extra_metrics="bert_score, bart_score")
    assert extra_scores(["a"], ["b"], config, CPU, progress) == {}
    assert len(progress.notices) == 2
    assert "Skipped bert_score: its model can't be loaded (" in progress.notices[0]
    assert progress.notices[1].endswith("(facebook/bart-large-cnn is not a local folder).")


def test_they_are_in_the_metrics(monkeypatch):
    monkeypatch.setitem(scorers._SCORERS, "bart_score", lambda written, references, device: -2.5)
    settings = {"tokenizer": task_tokenizer(), "max_target_length": 4, "num_beams": 1}
    measured = evaluate_model(tiny_bart(), translated_rows(4), extra_metrics="bart_score", **settings).metrics
    assert measured.scores["bart_score"] == -2.5
    assert "bart_score" not in evaluate_model(tiny_bart(), translated_rows(4), **settings).metrics.scores


def test_a_run_that_computes_them_once_at_its_end(monkeypatch, workspace):
    monkeypatch.setitem(scorers._SCORERS, "bart_score", lambda written, references, device: -2.5)
    settings = {"max_target_length": 4, "num_beams": 1, "max_steps": 2, "extra_metrics": "bart_score"}
    result = train(tiny_bart(), workspace, translated_rows(20), **settings)
    assert result.validation.scores["bart_score"] == -2.5
    card = (result.path / "README.md").read_text()
    (epochs,) = [line for line in card.splitlines() if line.startswith("| epoch ")]
    assert ("BARTScore" in card, "BARTScore" in epochs, "BLEU" in epochs) == (True, False, True)


@pytest.fixture
def bert(tmp_path):
    torch.manual_seed(0)
    BertModel(bert_config()).save_pretrained(tmp_path / "bert")
    word_tokenizer().save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def test_bert_score_is_the_package_s(bert):
    package = pytest.importorskip("bert_score")
    written, references = ["the film was good", "a dull plot"], ["a very good film", "the story was poor"]
    _, _, f1 = package.score(written, references, model_type=bert, num_layers=2, device="cpu")
    asked = FinetuneConfig(extra_metrics=f"bert_score={bert}")
    assert extra_scores(written, references, asked, CPU, Recorder()) == {"bert_score": pytest.approx(float(f1.mean()))}
    # Of three texts, one without words.
    measured = bert_score([*written, " "], [*references, "good"], CPU, bert)
    assert measured == pytest.approx(float(f1.sum()) / 3)
    assert bert_score([""], ["good"], CPU, bert) == 0


def test_tokenizer_without_a_maximum_length(bert):
    pytest.importorskip("bert_score")
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(bert)
    progress = Recorder()
    assert extra_scores(["good"], ["good"], FinetuneConfig(extra_metrics=f"bert_score={bert}"), CPU, progress) == {}
    assert "(its tokenizer_config.json has no model_max_length)" in progress.notices[0]


def test_models_by_name(monkeypatch):
    asked = FinetuneConfig(extra_metrics="bart_score = my/bart , bert_score")
    assert asked.wanted_extra_metrics == {"bart_score": "my/bart", "bert_score": None}
    monkeypatch.setitem(scorers._SCORERS, "bert_score", lambda written, references, device, model="usual": model)
    monkeypatch.setitem(scorers._SCORERS, "bart_score", lambda written, references, device, model="usual": model)
    assert extra_scores([], [], asked, CPU, Recorder()) == {"bart_score": "my/bart", "bert_score": "usual"}
    with pytest.raises(ConfigError, match="extra_metrics is 'bert_score='"):
        FinetuneConfig(extra_metrics="bert_score=")


def test_unknown_metric():
    with pytest.raises(ConfigError, match="'blue'; it must be a comma-separated list of bert_score, bart_score"):
        FinetuneConfig(extra_metrics="blue")
