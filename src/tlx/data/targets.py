"""What training aims at: a class or probabilities for every training image, and its weight.

Only train has these. Val and test are measured against their classes as they are.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tlx.data.manifest import SLACK, Sample
from tlx.errors import UserError, unknown

UNLABELLED = -1  # the class index of images without a label


@dataclass(frozen=True)
class TargetPolicy:
    """`label_smoothing`: the share of each target that is spread evenly over all classes (Szegedy
    et al. 2016, section 7). `class_weights` names classes; those it does not name have 1.
    """

    label_smoothing: float = 0.0
    soft_labels: bool = False
    class_weights: str | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"label_smoothing={self.label_smoothing:g}: a share from 0 to below 1, such as 0.1."
            )


def class_indices(samples: Sequence[Sample], classes: Sequence[str]) -> list[int]:
    """UNLABELLED where test lacks a label."""
    places = {name: index for index, name in enumerate(classes)} | {"": UNLABELLED}
    return [places[sample.label] for sample in samples]


@dataclass(frozen=True)
class ProbabilityTargets:
    """The probabilities of all classes, (classes,) float32, of the image at an index: its own, in
    `soft`, or the row of its class.
    """

    indices: Sequence[int]
    rows: Tensor  # (classes, classes)
    soft: Mapping[int, Tensor]

    def __getitem__(self, index: int) -> Tensor:
        own = self.soft.get(index)
        return self.rows[self.indices[index]] if own is None else own


def train_targets(
    samples: Sequence[Sample], classes: Sequence[str], policy: TargetPolicy, *, mixed: bool
) -> Sequence[int] | ProbabilityTargets:
    """Class indices where they say it all. Raises UserError for soft labels that are none."""
    indices = class_indices(samples, classes)
    if not (mixed or policy.soft_labels or policy.label_smoothing > 0):
        return indices
    soft = {}
    if policy.soft_labels:
        soft = {i: _soft_row(s, classes) for i, s in enumerate(samples) if s.soft}
        if not soft:
            raise UserError(
                "data.soft_labels=true: no training image has probabilities for its classes; "
                "choose a source that gives them, or data.soft_labels=false."
            )
    share = policy.label_smoothing

    def smoothed(rows: Tensor) -> Tensor:
        return rows * (1 - share) + share / len(classes)

    own = {index: smoothed(row) for index, row in soft.items()}
    return ProbabilityTargets(indices, smoothed(torch.eye(len(classes))), own)


def _soft_row(sample: Sample, classes: Sequence[str]) -> Tensor:
    try:
        soft = {name: float(value) for name, value in json.loads(sample.soft).items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(
            f"{sample.path}: soft label {sample.soft!r} is not a JSON object of classes and their "
            'probabilities, such as {"cat": 0.75, "dog": 0.25}.'
        ) from None
    for name in soft:
        if name not in classes:
            raise unknown(f"class in the soft label of {sample.path}:", name, classes)
    total = math.fsum(soft.values())
    if not (min(soft.values(), default=-1) >= 0 and abs(total - 1) <= SLACK):
        raise UserError(
            f"{sample.path}: the probabilities of its soft label {sample.soft} must be 0 or more "
            f"and add up to 1, not {total:g}."
        )
    return torch.tensor([soft.get(name, 0.0) / total for name in classes])


def sample_weights(
    samples: Sequence[Sample], classes: Sequence[str], policy: TargetPolicy
) -> Tensor | None:
    """(n,) float32 with a mean of 1, the image's own weight × its class's; None where all equal.

    'balanced' weighs a class by n / (classes × its images), as scikit-learn does.
    """
    for sample in samples:
        if not 0 <= sample.weight < math.inf:
            raise UserError(f"{sample.path}: a weight of {sample.weight:g}; it must be 0 or more.")
    of_class = _class_weights(samples, classes, policy.class_weights)
    own = [sample.weight * of_class.get(sample.label, 1.0) for sample in samples]
    if max(own, default=1.0) == 0:
        raise UserError("every training image has a weight of 0: nothing would be learned.")
    if len(set(own)) <= 1:
        return None
    weights = torch.tensor(own, dtype=torch.float64)
    return (weights / weights.mean()).float()


def _class_weights(
    samples: Sequence[Sample], classes: Sequence[str], given: str | Mapping[str, Any] | None
) -> dict[str, float]:
    if given is None:
        return {}
    if isinstance(given, str):
        counts = Counter(sample.label for sample in samples)
        return {name: len(samples) / (len(counts) * n) for name, n in counts.items()}
    weights = {str(name): value for name, value in given.items()}
    for name, value in weights.items():
        if name not in classes:
            raise unknown("class in data.class_weights:", name, classes)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 < value < math.inf):
            raise UserError(f"data.class_weights.{name}={value!r}: it must be a number above 0.")
    return weights
