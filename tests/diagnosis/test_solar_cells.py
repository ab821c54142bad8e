"""Data faults on the demo's solar cells with VGG16's real weights."""

from dataclasses import replace

import numpy as np
import pytest

from tlx.config import compose, parse
from tlx.data.manifest import Manifest
from tlx.diagnosis import data
from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import ranked
from tlx.training.job import prepare


@pytest.fixture
def cells(tmp_path):
    """The demo, whose labels in train are another image's where `shuffled`."""

    def make(*overrides, shuffled=False):
        settings = ["backbone=vgg16", "data=elpv", "trainer=cpu", "report=none", "verbosity=plain"]
        job = prepare(parse(compose([*settings, *overrides])), tmp_path / "run")
        if shuffled:
            labels = [sample.label for sample in job.manifest.samples]
            order = np.random.default_rng(0).permutation(len(labels))
            samples = [
                replace(sample, label=labels[i])
                for sample, i in zip(job.manifest.samples, order, strict=True)
            ]
            job = replace(job, manifest=Manifest.of(job.manifest.root, samples))
        return Case(job)

    return make


@pytest.mark.slow
@pytest.mark.pretrained
@pytest.mark.parametrize(
    ("overrides", "shuffled", "causes"),
    [
        ([], False, []),
        (["augment.horizontal_flip=true", "augment.vertical_flip=true"], False, []),
        (["augment=keras"], False, ["strong_augmentation"]),
        ([], True, ["shuffled_labels"]),
    ],
    ids=["healthy", "flips", "keras", "shuffled"],
)
def test_solar_cells(cells, overrides, shuffled, causes):
    case = cells(*overrides, shuffled=shuffled)
    found = ranked(f for check in data.CHEAP + data.FULL for f in check(case))
    found = [finding for finding in found if finding.severity != "note"]
    assert [finding.cause for finding in found] == causes
    if causes == ["strong_augmentation"]:
        assert found[0].fix.startswith("augment.rotation_range=0.0,")
