"""Exact match and F1 of answers are those of SQuAD's official scripts.

The two scripts are written out again below from their published rules, in their own structure, to compare with.
"""

import collections
import re
import string

import pytest

from layer_surgeon.finetune.squad import exact_match, f1, measure_answers, normalize_answer


def official_normalize(s):
    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def v1_f1(prediction, ground_truth):
    prediction_tokens = official_normalize(prediction).split()
    ground_truth_tokens = official_normalize(ground_truth).split()
    common = collections.Counter(prediction_tokens) & collections.Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


def v1_score(predictions, answers):
    exact = total = 0
    for prediction, truths in zip(predictions, answers, strict=True):
        exact += max(official_normalize(prediction) == official_normalize(t) for t in truths)
        total += max(v1_f1(prediction, t) for t in truths)
    return 100.0 * exact / len(answers), 100.0 * total / len(answers)


def v2_f1(a_gold, a_pred):
    gold_toks = official_normalize(a_gold).split() if a_gold else []
    pred_toks = official_normalize(a_pred).split() if a_pred else []
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def v2_score(predictions, answers):
    exact, total = [], []
    for prediction, truths in zip(predictions, answers, strict=True):
        gold_answers = [t for t in truths if official_normalize(t)]
        if not gold_answers:
            gold_answers = [""]
        exact.append(max(int(official_normalize(a) == official_normalize(prediction)) for a in gold_answers))
        total.append(max(v2_f1(a, prediction) for a in gold_answers))
    return 100.0 * sum(exact) / len(exact), 100.0 * sum(total) / len(total)


AWKWARD = [
    ("The Eiffel Tower", ["Eiffel tower"]),
    ("a theatre", ["theatre, the"]),
    ("an  apple\tand a pear", ["Apple and the pear!"]),
    ("", ["something"]),
    ("the", ["a"]),
    ("the", ["the"]),
    ("...", ["!!!"]),
    ("U.S.A.", ["USA", "United States"]),
    ("co-operate", ["cooperate", "co operate"]),
    ("Anthem", ["an them"]),
    ("Düsseldorf", ["dusseldorf", "DÜSSELDORF"]),
    ("\uff26\uff35\u3000\uff37", ["\uff46\uff55 \uff57"]),
    ("“quoted”", ["quoted", '"quoted"']),
    ("1,000", ["1000", "1 000"]),
    ("$5", ["5", "5 dollars"]),
    ("\u017ftra\xdfe", ["STRASSE"]),
    ("İstanbul", ["istanbul"]),
    ("to be or not to be", ["to be", "not to be to be or"]),
    ("東京 タワー", ["東京タワー", "東京 タワー"]),
    ("the the the cat", ["cat the"]),
    ("Beyoncé's album", ["Beyonces album", "beyoncé"]),
    ("a\u00a0b", ["b"]),
]


def test_awkward_answers_as_in_version_1():
    predictions, answers = zip(*AWKWARD, strict=True)
    measured = measure_answers(predictions, answers)
    assert (measured.exact_match, measured.f1) == pytest.approx(v1_score(predictions, answers), abs=1e-12)
    assert 0 < measured.f1 < measured.exact_match < 100  # an empty answer that is right has F1 0 in version 1
    assert (measured.version_2, measured.with_answer) == (False, None)


def test_awkward_answers_as_in_version_2():
    cases = [*AWKWARD, ("", []), ("something", []), ("the", []), ("", ["the"]), ("", ["", "a cat"])]
    predictions, answers = zip(*cases, strict=True)
    measured = measure_answers(predictions, answers)
    assert (measured.exact_match, measured.f1) == pytest.approx(v2_score(predictions, answers), abs=1e-12)
    assert measured.version_2
    assert measured.without_answer["examples"] == 3
    assert measured.without_answer["exact_match"] == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize(("predicted", "right"), AWKWARD)
def test_each_alone(predicted, right):
    assert normalize_answer(predicted) == official_normalize(predicted)
    for version_2, score in ((False, v1_score), (True, v2_score)):
        ours = exact_match(predicted, right, version_2=version_2), f1(predicted, right, version_2=version_2)
        assert (100 * ours[0], 100 * ours[1]) == pytest.approx(score([predicted], [right]), abs=1e-12)


def test_counted_by_hand():
    assert f1("the big red dog", ["red dog"], version_2=False) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert normalize_answer("An apple, the Pear & a theatre.") == "apple pear theatre"
    # The two versions differ if nothing is left of an answer.
    assert (f1("the", ["a"], version_2=False), exact_match("the", ["a"], version_2=False)) == (0, 1)
    assert (f1("the", ["a"], version_2=True), exact_match("the", ["a"], version_2=True)) == (1, 1)
