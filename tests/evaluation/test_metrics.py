import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from transferkit.evaluation.metrics import SINGLE_FIGURES, WeakClass, evaluate, evaluate_logits
from transferkit.files.strict_json import strict_json

K = 7
CLASSES = tuple("abcdefg")


def draw(seed, dtype=np.float64, absent=()):
    """Scores of 200 pictures that favour the label; the `absent` classes label none of them."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([k for k in range(K) if k not in absent], 200)
    logits = rng.normal(size=(200, K)) + 1.5 * np.eye(K)[labels]
    return logits.astype(dtype), labels


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("absent", [(), (0,), (2, 6)])
def test_equals_scikit_learn(absent):
    logits, labels = draw(1, absent=absent)
    found = evaluate_logits(logits, labels, CLASSES)
    probabilities, predicted, every = softmax(logits), logits.argmax(1), np.arange(K)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn remarks on classes without pictures
        assert found.accuracy == pytest.approx(sk.accuracy_score(labels, predicted))
        assert found.balanced_accuracy == pytest.approx(
            sk.balanced_accuracy_score(labels, predicted)
        )
        assert found.macro_f1 == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
        assert found.log_loss == pytest.approx(sk.log_loss(labels, probabilities, labels=every))
        for k in (3, 5):
            expected = sk.top_k_accuracy_score(labels, logits, k=k, labels=every)
            assert found.top_k[k] == pytest.approx(expected)
        assert found.weighted_f1 == pytest.approx(
            sk.f1_score(labels, predicted, average="weighted")
        )
        brier = sk.brier_score_loss(labels, probabilities, labels=every, scale_by_half=False)
        assert found.brier == pytest.approx(brier)
        there = [k for k in every if k not in absent]
        one_hot = np.eye(K)[labels]
        for name, reference in (
            ("auroc", sk.roc_auc_score),
            ("average_precision", sk.average_precision_score),
        ):
            expected = reference(one_hot[:, there], probabilities[:, there], average="macro")
            assert getattr(found, name) == pytest.approx(expected)
            assert np.isnan([getattr(found.per_class[k], name) for k in absent]).all()
        assert (found.confusion == sk.confusion_matrix(labels, predicted, labels=every)).all()
        p, r, f, n = sk.precision_recall_fscore_support(
            labels, predicted, labels=every, zero_division=np.nan
        )
    table = np.array([(s.precision, s.recall, s.f1, s.support) for s in found.per_class]).T
    np.testing.assert_allclose(table, [p, r, f, n])
    assert [s.name for s in found.per_class] == list(CLASSES)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_give_the_same_as_logits(dtype):
    logits, labels = draw(2, dtype)
    one = evaluate_logits(logits, labels, CLASSES)
    other = evaluate(softmax(logits), labels, CLASSES)
    assert other.headline == pytest.approx(one.headline, rel=1e-6)
    assert (other.confusion == one.confusion).all()


def test_zero_probability_has_a_finite_log_loss():
    certain = np.array([[1, 0], [1, 0]], dtype=np.float32)
    found = evaluate(certain, [0, 1], ("a", "b"))
    assert found.log_loss == pytest.approx(-np.log(np.finfo(np.float32).eps) / 2)


def test_large_logits_do_not_overflow():
    found = evaluate_logits([[1e5, 0.0], [1e5, 0.0]], [0, 1], ("a", "b"))
    assert found.log_loss == pytest.approx(5e4)


def test_small_case_by_hand():
    # labels a a a b c; predictions a b b b a; class d never occurs
    picks, labels = [0, 1, 1, 1, 0], [0, 0, 0, 1, 2]
    found = evaluate_logits(np.eye(4)[picks], labels, ("a", "b", "c", "d"))
    assert found.confusion.tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert found.accuracy == pytest.approx(2 / 5)
    assert found.balanced_accuracy == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert found.macro_f1 == pytest.approx((2 / 5 + 2 / 4 + 0) / 3)
    assert found.weighted_f1 == pytest.approx((3 * 2 / 5 + 2 / 4 + 0) / 5)
    assert found.top_k == {3: 1.0}  # a tie ranks in the order of the classes: c is third
    pairs = [(p.label, p.predicted, p.count, p.share) for p in found.most_confused]
    assert pairs == [("a", "b", 2, pytest.approx(2 / 3)), ("c", "a", 1, 1.0)]
    assert found.weakest() == (
        WeakClass("c", 0.0, 1, "a", 1),
        WeakClass("a", pytest.approx(1 / 3), 3, "b", 2),
    )
    assert found.weakest(1)[0].name == "c"
    assert np.isnan(found.per_class[2].precision)
    assert np.isnan(found.per_class[3].recall)


def test_to_dict_is_json():
    found = evaluate_logits(np.eye(3)[[0, 0]], [0, 1], ("a", "b", "c"))
    plain = found.to_dict()
    strict_json(plain)
    assert plain["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert plain["per_class"][2]["recall"] is None
    assert plain["top_k"] == {}
    assert set(found.headline) == set(SINGLE_FIGURES)
    assert plain["per_class"][2]["auroc"] is None


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        (np.zeros((2, 3)), [0, 1]),
        (np.zeros((2, 2)), [0]),
        (np.zeros((0, 2)), []),
        (np.zeros((1, 2)), [2]),
        (np.zeros((1, 2)), [-1]),
    ],
)
def test_what_does_not_fit_is_refused(scores, labels):
    with pytest.raises(ValueError, match="labels"):
        evaluate_logits(scores, labels, ("a", "b"))
    with pytest.raises(ValueError, match="labels"):
        evaluate(scores, labels, ("a", "b"))
