import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_sample_weight

from tlx.data.manifest import Sample
from tlx.data.targets import TargetPolicy, class_indices, sample_weights, train_targets
from tlx.errors import UserError

CLASSES = ("1", "2", "10")
LABELS = ["10"] * 6 + ["1"] * 3 + ["2"]
SAMPLES = [Sample(f"{i}.png", label, "train", "", "") for i, label in enumerate(LABELS)]


def vectors(samples=SAMPLES, classes=CLASSES, mixed=False, **policy) -> torch.Tensor:
    targets = train_targets(samples, classes, TargetPolicy(**policy), mixed=mixed)
    return torch.stack([targets[index] for index in range(len(samples))])


def soft(**probabilities: float) -> Sample:
    return replace(SAMPLES[0], soft=json.dumps(probabilities))


# Targets


def test_plain_targets_are_class_indices_in_the_order_of_the_classes():
    targets = train_targets(SAMPLES, CLASSES, TargetPolicy(), mixed=False)
    assert targets == class_indices(SAMPLES, CLASSES) == [2] * 6 + [0] * 3 + [1]


def test_mixing_needs_vectors():
    expected = F.one_hot(torch.tensor(class_indices(SAMPLES, CLASSES)), 3).float()
    assert torch.equal(vectors(mixed=True), expected)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothing_is_that_of_pytorch(smoothing):
    logits = torch.randn(len(SAMPLES), 3, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(
        logits, torch.tensor(class_indices(SAMPLES, CLASSES)), label_smoothing=smoothing
    )
    found = F.cross_entropy(logits, vectors(label_smoothing=smoothing))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(vectors(label_smoothing=smoothing).sum(1), torch.ones(10))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_is_a_share(smoothing):
    with pytest.raises(UserError, match="label_smoothing=.* from 0 to below 1"):
        TargetPolicy(label_smoothing=smoothing)


def test_soft_labels_are_by_name_and_the_others_hard():
    samples = [soft(**{"10": 0.25, "1": 0.75}), *SAMPLES[1:], soft(**{"2": 0.333, "10": 0.667})]
    found = vectors(samples, soft_labels=True)
    torch.testing.assert_close(found[0], torch.tensor([0.75, 0.0, 0.25]))
    torch.testing.assert_close(found[-1], torch.tensor([0.0, 0.333, 0.667]))
    assert torch.equal(found[1:-1], vectors(mixed=True)[1:])
    smooth = vectors(samples, soft_labels=True, label_smoothing=0.3)
    torch.testing.assert_close(smooth[0], torch.tensor([0.625, 0.1, 0.275]))
    assert torch.equal(vectors(samples, mixed=True)[0], torch.tensor([0.0, 0.0, 1.0]))  # not asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5", "0.png: soft label '0.5' is not a JSON object"),
        ('{"1": "much"}', "is not a JSON object"),
        ('{"1": null}', "is not a JSON object"),
        ("{", "is not a JSON object"),
        ("{}", "add up to 1, not 0"),
        ('{"1": 0.5, "2": 0.4}', "add up to 1, not 0.9"),
        ('{"1": 1.5, "2": -0.5}', "must be 0 or more"),
        ('{"1": NaN}', "must be 0 or more"),
        ('{"1": 0.5, "100": 0.5}', "class in the soft label of 0.png: '100'. Did you mean 10"),
    ],
)
def test_soft_labels_that_are_none(text, message):
    with pytest.raises(UserError, match=message):
        vectors([replace(SAMPLES[0], soft=text)], soft_labels=True)


def test_soft_labels_that_nobody_gave():
    with pytest.raises(UserError, match="data.soft_labels=true: no training image has"):
        vectors(soft_labels=True)


# Weights


def weights(samples=SAMPLES, class_weights=None) -> list[float] | None:
    found = sample_weights(samples, CLASSES, TargetPolicy(class_weights=class_weights))
    return None if found is None else found.tolist()


def test_equal_weights_are_none():
    assert weights() is None
    assert weights([replace(sample, weight=7.0) for sample in SAMPLES]) is None
    assert weights(SAMPLES[:6], "balanced") is None


def test_balanced_weights_are_those_of_scikit_learn():
    expected = compute_sample_weight("balanced", LABELS)
    np.testing.assert_allclose(weights(class_weights="balanced"), expected, rtol=1e-6)
    assert expected.mean() == pytest.approx(1)


def test_an_images_weight_times_its_classs_with_a_mean_of_one():
    samples = [replace(sample, weight=float(i % 2 + 1)) for i, sample in enumerate(SAMPLES)]
    raw = np.array([1, 2, 1, 2, 1, 2, 1, 2, 1, 2 * 4.0])
    np.testing.assert_allclose(weights(samples, {"2": 4}), raw / raw.mean(), rtol=1e-6)
    np.testing.assert_allclose(weights(samples), np.array([1, 2] * 5) / 1.5, rtol=1e-6)
    assert weights([replace(SAMPLES[0], weight=0.0), *SAMPLES[1:]])[0] == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"11": 2.0}, "unknown class in data.class_weights: '11'. Did you mean 1"),
        ({"1": 0}, "data.class_weights.1=0: it must be a number above 0"),
        ({"1": "2.0"}, "data.class_weights.1='2.0'"),
        ({"1": True}, "data.class_weights.1=True"),
        ({"1": float("inf")}, "data.class_weights.1=inf"),
    ],
)
def test_class_weights_that_are_none(given, message):
    with pytest.raises(UserError, match=message):
        weights(class_weights=given)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_of_images_are_numbers_of_0_or_more(weight):
    with pytest.raises(UserError, match=f"3.png: a weight of {weight:g}; it must be 0 or more"):
        weights([*SAMPLES[:3], replace(SAMPLES[3], weight=weight)])


def test_keys_that_yaml_reads_as_numbers_are_names():
    assert weights(class_weights={1: 2.0}) == weights(class_weights={"1": 2.0})
