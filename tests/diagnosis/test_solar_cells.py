"""The whole doctor on the demo's solar cells, with real weights where there are any to have."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tlx.composition import compose
from tlx.config import parse
from tlx.data.manifest import Manifest
from tlx.diagnosis.before import case_of, examine
from tlx.diagnosis.case import Case

pytestmark = [pytest.mark.slow, pytest.mark.pretrained]
SCRATCH = ["backbone.weights=null", "stage=scratch"]


def solar_cells(folder: Path, *overrides: str) -> Case:
    settings = ["data=elpv", "trainer=cpu", "report=none", "verbosity=plain"]
    return case_of(parse(compose([*settings, *overrides])), folder)


def above_notes(case: Case) -> list[str]:
    found = examine(case)
    assert found.not_examined == ()
    return [finding.cause for finding in found.findings if finding.severity != "note"]


@pytest.mark.parametrize(
    ("backbone", "size", "overrides"),
    [
        ("vgg16", 96, []),
        ("squeezenet1_1", 128, []),
        ("resnet18", 64, SCRATCH),
        ("efficientnet_b0", 64, SCRATCH),
        ("vit_b_16", 64, SCRATCH),
    ],
)
def test_nothing_in_five_healthy_trainings(
    tmp_path: Path, backbone: str, size: int, overrides: list[str]
) -> None:
    case = solar_cells(tmp_path, f"backbone={backbone}", f"data.image_size={size}", *overrides)
    assert above_notes(case) == []


@pytest.mark.parametrize(
    ("overrides", "causes"),
    [
        (["augment.horizontal_flip=true", "augment.vertical_flip=true"], []),
        (["augment=keras"], ["strong_augmentation"]),
    ],
    ids=["flips", "keras"],
)
def test_augmentation(tmp_path: Path, overrides: list[str], causes: list[str]) -> None:
    assert above_notes(solar_cells(tmp_path, "backbone=vgg16", *overrides)) == causes


def test_labels_of_other_images(tmp_path: Path) -> None:
    case = solar_cells(tmp_path, "backbone=vgg16", "data.image_size=96")
    samples = case.job.manifest.samples
    order = np.random.default_rng(0).permutation(len(samples))
    samples = [replace(s, label=samples[i].label) for s, i in zip(samples, order, strict=True)]
    manifest = Manifest.of(case.job.manifest.root, samples)
    assert above_notes(Case(replace(case.job, manifest=manifest))) == ["shuffled_labels"]
