"""The threshold of two classes, against a search over every score."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from tlx.errors import UserError
from tlx.evaluation.threshold import choose_threshold
from tlx.models.decision import Decision, decide, parse_aim, positive_class


def case(seed=0, n=60):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.int64)
    scores = np.clip(rng.normal(0.35 + 0.25 * labels, 0.2), 0, 1).round(2)
    return np.stack([1 - scores, scores], axis=1), labels


def outcome(probabilities, labels, aim, positive=1):
    decision = choose_threshold(probabilities, labels, positive=positive, aim=aim)
    return decide(probabilities, decision) == positive


def youden(truth, chosen):
    return recall_score(truth, chosen) + recall_score(~truth, ~chosen) - 1


@pytest.mark.parametrize(("seed", "positive"), [(0, 0), (1, 1)])
def test_f1_and_youden_are_the_best_of_all(seed, positive):
    probabilities, labels = case(seed)
    truth, scores = labels == positive, probabilities[:, positive]
    every = [scores >= t for t in np.unique(scores)]
    assert f1_score(truth, outcome(probabilities, labels, "f1", positive)) == pytest.approx(
        max(f1_score(truth, chosen) for chosen in every)
    )
    found = outcome(probabilities, labels, "youden", positive)
    assert youden(truth, found) == pytest.approx(max(youden(truth, chosen) for chosen in every))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("level", [0.6, 0.95, 1])
def test_recall_is_reached_at_the_highest_threshold(seed, level):
    probabilities, labels = case(seed)
    found = outcome(probabilities, labels, f"recall:{level}")
    assert recall_score(labels, found) >= level
    fewer = [
        s for s in np.unique(probabilities[:, 1]) if (probabilities[:, 1] >= s).sum() < found.sum()
    ]
    assert all(recall_score(labels, probabilities[:, 1] >= s) < level for s in fewer)


def test_precision_is_reached_with_the_most_recall():
    probabilities, labels = case()
    found = outcome(probabilities, labels, "precision:0.75")
    every = [probabilities[:, 1] >= t for t in np.unique(probabilities[:, 1])]
    reached = [c for c in every if precision_score(labels, c) >= 0.75]
    assert precision_score(labels, found) >= 0.75
    assert recall_score(labels, found) == max(recall_score(labels, c) for c in reached)


def test_what_cannot_be_reached_is_said(caplog):
    labels = np.array([0, 1, 1, 0])
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    probabilities = np.stack([1 - scores, scores], axis=1)
    decision = choose_threshold(probabilities, labels, positive=1, aim="precision:0.9")
    assert decision.threshold == pytest.approx(0.4)  # two of three right
    assert "0.6667" in caplog.text
    assert (decision.reached, decision.missed) == (pytest.approx(2 / 3), True)
    one_class = choose_threshold(probabilities, np.ones(4, dtype=int), positive=1, aim="f1")
    assert (one_class.threshold, one_class.reached, one_class.missed) == (0.5, None, False)
    assert "one of the two classes" in caplog.text


def test_what_was_reached_is_kept():
    probabilities, labels = case()
    scores = {"f1": f1_score, "youden": youden, "recall:0.9": recall_score,
              "precision:0.6": precision_score}  # fmt: skip
    for aim, score in scores.items():
        decision = choose_threshold(probabilities, labels, positive=1, aim=aim)
        expected = score(labels == 1, decide(probabilities, decision) == 1)
        assert decision.reached == pytest.approx(expected)
        assert not decision.missed


def test_a_rounding_error_changes_no_side():
    probabilities, labels = case(3)
    decision = choose_threshold(probabilities, labels, positive=1, aim="f1")
    before = decide(probabilities, decision)
    for shift in (-1e-9, 1e-9):
        assert (decide(probabilities + shift, decision) == before).all()


def test_decide_without_a_threshold_takes_the_likeliest():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    assert decide(probabilities, None).tolist() == [1, 0]
    assert decide(np.array([[0.6, 0.4]]), Decision(1, 0.3, "f1")).tolist() == [1]
    assert decide(np.array([[0.6, 0.4]]), Decision(0, 0.7, "f1")).tolist() == [1]


@pytest.mark.parametrize("text", ["F1", "recall", "recall:", "recall:1.2", "recall:0", "0.5"])
def test_a_bad_aim_is_an_error(text):
    with pytest.raises(UserError, match="f1 | youden"):
        parse_aim(text)


def test_aims_are_read():
    assert (parse_aim("recall:.95").name, parse_aim("recall:.95").level) == ("recall", 0.95)
    assert parse_aim("youden").name == "youden"


def test_the_positive_class():
    assert positive_class(None, ("bad", "good")) == 1
    assert positive_class("bad", ("bad", "good")) == 0
    with pytest.raises(UserError, match="Did you mean good"):
        positive_class("god", ("bad", "good"))
    with pytest.raises(UserError, match="2 classes, not 3"):
        positive_class(None, ("a", "b", "c"))
