"""Metrics of the tasks equal those of the reference libraries on fixed predictions."""

from dataclasses import replace

import pytest
import sacrebleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score import rouge_scorer
from seqeval import metrics as seqeval_metrics
from sklearn.metrics import f1_score

from layer_surgeon.finetune import written
from layer_surgeon.finetune.tasks.token_classification import measure_tags
from layer_surgeon.finetune.written import measure_texts

WRITTEN = ["the cat sat on the mat", "a dog runs", "", "Ein Mann läuft über die Straße .", "it is what it was ."]
RIGHT = [
    "the cat is on the mat",
    "the dogs ran fast",
    "nothing at all",
    "Ein Mann läuft über eine Straße .",
    "it is what it is .",
]


def test_bleu_is_sacrebleus():
    measured = measure_texts(WRITTEN, RIGHT)
    assert measured.bleu == sacrebleu.corpus_bleu(WRITTEN, [RIGHT]).score > 5
    assert "tok:13a" in measured.bleu_signature


def test_bleu_is_of_the_corpus_and_no_mean():
    singles = [sacrebleu.corpus_bleu([a], [[b]]).score for a, b in zip(WRITTEN, RIGHT, strict=True)]
    assert measure_texts(WRITTEN, RIGHT).bleu != pytest.approx(sum(singles) / len(singles), abs=1)


def test_rouge_is_rouge_scores():
    measured = measure_texts(WRITTEN, RIGHT)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
    scores = [scorer.score(target, text) for text, target in zip(WRITTEN, RIGHT, strict=True)]
    for ours, theirs in (
        ("rouge_1", "rouge1"),
        ("rouge_2", "rouge2"),
        ("rouge_l", "rougeL"),
        ("rouge_l_sum", "rougeLsum"),
    ):
        mean = sum(score[theirs].fmeasure for score in scores) / len(scores)
        assert getattr(measured, ours) == pytest.approx(mean, abs=1e-12)
    assert measured.rouge_1 > measured.rouge_2 > 0


class Synonyms:
    """A word book of one entry."""

    class Lemma:
        def name(self):
            return "mat"

    class Synset:
        def lemmas(self):
            return [Synonyms.Lemma()]

    def synsets(self, word):
        return [self.Synset()] if word == "rug" else []

    def ensure_loaded(self):
        pass


def test_meteor_is_nltks_without_wordnet(monkeypatch):
    monkeypatch.setattr(written, "has_wordnet", lambda: False)
    measured = measure_texts(["dogs run on the rug"], ["the dog runs on the mat"])

    class Nothing:
        def synsets(self, word):
            return []

    right, said = ["the", "dog", "runs", "on", "the", "mat"], ["dogs", "run", "on", "the", "rug"]
    expected = single_meteor_score(right, said, wordnet=Nothing())
    assert measured.meteor == pytest.approx(expected, abs=1e-12)
    # Stems are matched: dogs and dog, run and runs.
    assert measured.meteor > 0.3
    assert measured.meteor_stages == "exact, stem"


def test_meteor_has_synonyms_with_wordnet(monkeypatch):
    without = measure_texts(["the rug"], ["the mat"]).meteor
    monkeypatch.setattr(written, "has_wordnet", lambda: True)
    monkeypatch.setattr(written, "wordnet", Synonyms())
    measured = measure_texts(["the rug"], ["the mat"])
    assert measured.meteor > without
    assert measured.meteor_stages == "exact, stem, synonym"


def test_scores_are_named():
    scores = replace(measure_texts(WRITTEN, RIGHT, 1.5), extra={"bart_score": -3.0}).scores
    assert list(scores) == ["bleu", "rouge_1", "rouge_2", "rouge_l", "rouge_l_sum", "meteor", "bart_score", "loss"]


TRUE = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "I-LOC", "O"], ["O", "O"]]
SAID = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-LOC", "O", "O"], ["B-ORG", "O"]]


def test_tags_are_seqevals():
    measured = measure_tags(TRUE, SAID, 20.0, 10)
    assert measured.f1 == pytest.approx(seqeval_metrics.f1_score(TRUE, SAID))
    assert measured.precision == pytest.approx(seqeval_metrics.precision_score(TRUE, SAID)) == 0.25
    assert measured.recall == pytest.approx(seqeval_metrics.recall_score(TRUE, SAID)) == pytest.approx(1 / 3)
    assert measured.accuracy == pytest.approx(seqeval_metrics.accuracy_score(TRUE, SAID)) == 0.7
    assert (measured.loss, measured.examples, measured.words) == (2.0, 3, 10)
    report = seqeval_metrics.classification_report(TRUE, SAID, output_dict=True, zero_division=0)
    assert set(measured.per_class) == {"PER", "LOC", "ORG"}
    assert measured.per_class["PER"].f1 == pytest.approx(report["PER"]["f1-score"])
    assert (measured.per_class["LOC"].support, measured.per_class["ORG"].support) == (2, 0)


def test_tags_that_are_not_entities():
    true, said = [["DET", "NOUN"], ["VERB"]], [["DET", "VERB"], ["VERB"]]
    measured = measure_tags(true, said)
    expected = f1_score(["DET", "NOUN", "VERB"], ["DET", "VERB", "VERB"], average="macro", zero_division=0)
    assert measured.f1 == pytest.approx(expected)
    assert set(measured.per_class) == {"DET", "NOUN", "VERB"}


def test_no_entities():
    measured = measure_tags([["O", "O"]], [["O", "O"]], label_names=("O", "B-PER"))
    assert (measured.accuracy, measured.f1, measured.per_class) == (1, 0, {})
