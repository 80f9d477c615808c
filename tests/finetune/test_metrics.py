"""Our metrics are scikit-learn's, over the whole set."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sklearn_metrics

from layer_surgeon.finetune.metrics import measure

NAMES = ("a", "b", "c")


@pytest.fixture
def predictions():
    rng = np.random.default_rng(3)
    return rng.normal(size=(101, 3)).astype(np.float32), rng.integers(0, 3, size=101)


def test_equal_scikit_learn(predictions):
    logits, labels = predictions
    predicted = logits.argmax(-1)
    measured = measure(logits, labels.tolist(), NAMES)
    report = sklearn_metrics.classification_report(labels, predicted, target_names=NAMES, output_dict=True)
    assert measured.accuracy == report["accuracy"]
    assert measured.macro_f1 == report["macro avg"]["f1-score"]
    assert measured.loss == pytest.approx(
        sklearn_metrics.log_loss(labels, softmax(logits.astype(float), axis=-1)), rel=1e-12
    )
    assert measured.confusion == tuple(map(tuple, sklearn_metrics.confusion_matrix(labels, predicted).tolist()))
    assert measured.examples == 101
    for name in NAMES:
        scores = measured.per_class[name]
        expected = report[name]
        assert (scores.precision, scores.recall, scores.f1, scores.support) == (
            expected["precision"],
            expected["recall"],
            expected["f1-score"],
            expected["support"],
        )


def test_counted_by_hand():
    logits = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]], dtype=np.float32)
    measured = measure(logits, [0, 0, 1, 1], ("no", "yes"))
    assert measured.accuracy == 0.75
    assert measured.confusion == ((2, 0), (1, 1))
    assert measured.per_class["yes"].recall == 0.5
    # F1: no 2*2/(2*2+1) = 0.8, yes 2*1/(2*1+1) = 2/3
    assert measured.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)


def test_class_without_examples():
    measured = measure(np.array([[1.0, 0.0, 0.0]], dtype=np.float32), [0], NAMES)
    assert (measured.accuracy, measured.macro_f1) == (1.0, 1.0)
    assert measured.per_class["c"].support == 0


def test_large_logits_stay_finite():
    assert np.isfinite(measure(np.array([[1e4, -1e4]], dtype=np.float32), [1], ("a", "b")).loss)
