"""Every figure against scikit-learn's, on random and degenerate predictions."""

import re
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.exceptions import UndefinedMetricWarning

from tlx.evaluation.classification_report import classification_report
from tlx.evaluation.metrics import evaluate

EXACT = {"rel": 0, "abs": 1e-9}


def names(count):
    return [f"class {i}" for i in range(count)]


def random_case(n, classes, seed, *, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    if ties:
        scores = np.round(scores)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return probabilities, labels


def absent_class():
    probabilities, labels = random_case(60, 4, 5)
    return probabilities, np.where(labels == 2, 1, labels)


def absent_and_never_predicted():
    probabilities, labels = random_case(60, 4, 6)
    probabilities[:, 3] = 0
    return probabilities / probabilities.sum(axis=1, keepdims=True), np.minimum(labels, 2)


CASES = {
    "two classes": random_case(80, 2, 1),
    "three classes": random_case(90, 3, 2),
    "seven classes, ties": random_case(200, 7, 3, ties=True),
    "more classes than images": random_case(9, 30, 4),
    "a class absent": absent_class(),
    "a class absent and never predicted": absent_and_never_predicted(),
    "all predictions equal": (np.full((20, 4), 0.25), np.arange(20) % 4),
    "all predictions equal, two classes": (np.tile([0.3, 0.7], (20, 1)), np.arange(20) % 2),
    "one image, right": (np.array([[0.1, 0.7, 0.2]]), np.array([1])),
    "one image, wrong": (np.array([[0.1, 0.7, 0.2]]), np.array([0])),
    "certain and wrong": (np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 1])),
    "all right": (np.eye(3)[[0, 1, 2, 2]], np.array([0, 1, 2, 2])),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request):
    probabilities, labels = CASES[request.param]
    found = evaluate(probabilities, labels, names(probabilities.shape[1]))
    return probabilities, labels, found


def test_scores_of_the_predicted_classes(case):
    probabilities, labels, found = case
    predicted, classes = probabilities.argmax(axis=1), probabilities.shape[1]
    assert found["n"] == len(labels)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted), **EXACT)
    recalls = sk.recall_score(labels, predicted, labels=np.unique(labels), average="macro")
    assert found["balanced_accuracy"] == pytest.approx(recalls, **EXACT)
    for average in ("macro", "weighted"):
        *expected, _ = sk.precision_recall_fscore_support(
            labels, predicted, average=average, zero_division=0
        )
        assert list(found[average].values()) == pytest.approx(expected, **EXACT)
    assert found["macro_f1"] == found["macro"]["f1"]
    everyone = np.arange(classes)
    assert found["confusion"] == sk.confusion_matrix(labels, predicted, labels=everyone).tolist()
    by_class = sk.precision_recall_fscore_support(
        labels, predicted, labels=everyone, zero_division=0
    )
    for i, scores in enumerate(found["per_class"].values()):
        for key, values in zip(("precision", "recall", "f1", "support"), by_class, strict=True):
            assert scores[key] == pytest.approx(values[i], **EXACT)


def test_scores_of_the_probabilities(case):
    probabilities, labels, found = case
    classes = probabilities.shape[1]
    expected = sk.log_loss(labels, probabilities, labels=np.arange(classes))
    assert found["loss"] == pytest.approx(expected, **EXACT)
    if classes > 2:
        brier = sk.brier_score_loss(labels, probabilities, labels=np.arange(classes))
    else:
        brier = sk.brier_score_loss(labels, probabilities[:, 1], pos_label=1)
    assert found["brier"] == pytest.approx(brier, **EXACT)
    for k in (2, 5):
        if k < classes:
            expected = sk.top_k_accuracy_score(
                labels, probabilities, k=k, labels=np.arange(classes)
            )
            assert found[f"top{k}_accuracy"] == pytest.approx(expected, **EXACT)
        else:
            assert f"top{k}_accuracy" not in found


def test_areas_under_the_curves(case):
    probabilities, labels, found = case
    expected = {"roc_auc": [], "average_precision": []}
    for i, scores in enumerate(found["per_class"].values()):
        truth = labels == i
        if truth.all() or not truth.any():
            assert (scores["roc_auc"], scores["average_precision"]) == (None, None)
            continue
        expected["roc_auc"].append(sk.roc_auc_score(truth, probabilities[:, i]))
        expected["average_precision"].append(sk.average_precision_score(truth, probabilities[:, i]))
        for key, values in expected.items():
            assert scores[key] == pytest.approx(values[-1], **EXACT)
    for key, values in expected.items():
        if not values:
            assert found[key] is None
        else:
            overall = values[-1] if probabilities.shape[1] == 2 else np.mean(values)
            assert found[key] == pytest.approx(overall, **EXACT)


def test_overall_area_is_scikit_learns_one_versus_rest():
    probabilities, labels = CASES["seven classes, ties"]
    found = evaluate(probabilities, labels, names(7))
    expected = sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert found["roc_auc"] == pytest.approx(expected, **EXACT)


def test_the_report_is_scikit_learns_text(case):
    probabilities, labels, found = case
    predicted = probabilities.argmax(axis=1)
    occurring = np.union1d(labels, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        expected = sk.classification_report(
            labels,
            predicted,
            target_names=[f"class {i}" for i in occurring],
            digits=4,
            zero_division=0,
        )
    whole = re.sub(r"(\d+)\.0$", r"  \1", expected, flags=re.MULTILINE)  # its 1.0 images
    assert classification_report(found) == whole


def test_notes_name_the_classes_that_numbers_cannot_speak_of():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]])
    found = evaluate(probabilities, np.array([0, 1]), ["cat", "dog", "owl"])
    absent, never, _ = found["notes"]
    assert "owl" in absent
    assert "dog" in never
    assert found["per_class"]["owl"]["recall_ci95"] is None
    assert evaluate(*CASES["three classes"], names(3))["notes"] == []


def test_a_class_without_images_that_is_predicted_is_said_to_count():
    probabilities, labels = CASES["a class absent"]
    found = evaluate(probabilities, labels, names(4))
    assert "No image of class 2, yet predicted: its F1 of 0 counts in macro F1." in found["notes"]
    by_class = [scores["f1"] for scores in found["per_class"].values()]
    assert by_class[2] == 0
    assert found["macro_f1"] == pytest.approx(np.mean(by_class))


def test_a_threshold_changes_classes_and_not_probabilities():
    probabilities, labels = CASES["two classes"]
    plain = evaluate(probabilities, labels, names(2))
    all_second = evaluate(
        probabilities, labels, names(2), predicted=np.ones(len(labels), dtype=np.int64)
    )
    assert all_second["per_class"]["class 1"]["recall"] == 1
    for key in ("loss", "brier", "ece", "roc_auc"):
        assert all_second[key] == plain[key]


def test_the_areas_are_those_of_the_positive_class():
    probabilities, labels = CASES["two classes"]
    for positive in (0, 1):
        found = evaluate(probabilities, labels, names(2), positive=positive)
        expected = sk.average_precision_score(labels == positive, probabilities[:, positive])
        assert found["average_precision"] == pytest.approx(expected, **EXACT)
        assert found["roc_auc"] == found["per_class"][f"class {positive}"]["roc_auc"]


def test_a_thousand_classes_leave_the_matrix_out():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1000, 3000)
    probabilities = rng.dirichlet(np.ones(1000), 3000)
    found = evaluate(probabilities, labels, names(1000))
    assert found["confusion"] is None
    assert found["notes"][-1].startswith("metrics.json leaves the confusion matrix out")
    expected = sk.f1_score(labels, probabilities.argmax(axis=1), average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(expected, **EXACT)
    assert found["macro_f1_ci95"] is None
    assert "macro F1 has no 95 % interval" in found["notes"][-2]
