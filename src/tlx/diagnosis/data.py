"""The examination of images, labels and splits before a training."""

from collections.abc import Callable, Iterator

from tlx.diagnosis.case import Case
from tlx.diagnosis.claims import few_images
from tlx.diagnosis.findings import Finding
from tlx.diagnosis.inputs import input_mismatch, small_images
from tlx.diagnosis.labels import labels_and_augmentation
from tlx.diagnosis.splits import augmented_evaluation, class_order, leak

Check = Callable[[Case], Iterator[Finding]]

CHEAP: tuple[Check, ...] = (
    input_mismatch, small_images, class_order, leak, augmented_evaluation, few_images
)  # fmt: skip
FULL: tuple[Check, ...] = (labels_and_augmentation,)
