"""The feature cache: the same numbers, computed once, never stale."""

import logging
import os
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest
import torch

from tlx.config import compose, parse
from tlx.errors import UserError
from tlx.training import features as cache
from tlx.training.features import FeatureStore, Source, fingerprint, pictures_of
from tlx.training.inputs import image_data
from tlx.training.job import prepare
from tlx.training.module import StageModule
from tlx.training.run import train_stages

LIGHT = ["augment=light", "cache.views=2"]
MIXED = [*LIGHT, "augment.mixup=1", "augment.cutmix=1", "label_smoothing=0.1",
         "data.class_weights={red: 2}", "data.sampling=balanced"]  # fmt: skip


@pytest.fixture
def job(image_folder, tmp_path):
    def make(*overrides, folder="run"):
        settings = [
            "backbone=shufflenet_v2_x0_5", "backbone.weights=null", "data=folder",
            f"data.root={image_folder}", "data.image_size=32", "data.batch_size=4",
            "data.keep_together=none", "trainer=cpu", "verbosity=plain", "report=none",
            "stage.head.epochs=3", "stage.top.epochs=3", f"cache.dir={tmp_path}/features",
        ]  # fmt: skip
        return prepare(parse(compose([*settings, *overrides])), tmp_path / folder)

    return make


@pytest.fixture
def open_store():
    with ExitStack() as stack:
        yield lambda folder, size=10**9: stack.enter_context(closing(FeatureStore(folder, size)))


def source(run):
    data = image_data(run)
    return data, Source(
        run.model.classifier, run.model.preprocess, data.augment, run.config.seed,
        device=torch.device("cpu"), bf16=False, batch_size=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    "overrides", [[], LIGHT, MIXED], ids=["plain", "two views", "mixed, smoothed, weighted"]
)
def test_cached_training_takes_the_same_steps(job, monkeypatch, overrides):
    losses = {}
    for mode in ("on", "off"):
        seen = losses[mode] = []
        step = StageModule.training_step

        def spy(self, batch, index, seen=seen, step=step):
            value = step(self, batch, index)
            seen.append(value.item())
            return value

        with monkeypatch.context() as patch:
            patch.setattr(StageModule, "training_step", spy)
            results = train_stages(job(f"cache={mode}", *overrides, folder=mode))
        assert [result.cached for result in results] == [mode == "on"] * 2
    assert len(losses["on"]) == 6 * 4
    torch.testing.assert_close(losses["on"], losses["off"], atol=1e-5, rtol=0)


def test_an_interrupted_extraction_goes_on_where_it_stopped(job, tmp_path, caplog, open_store):
    data, origin = source(job())
    cut = 5
    pictures = pictures_of(data)[1]
    store = open_store(tmp_path / "one")
    (whole,) = store.features(origin, pictures, [cut])
    entry = tmp_path / "two" / fingerprint(origin, pictures, cut)
    entry.mkdir(parents=True)
    row = whole[0].numel() * 4
    raw = (tmp_path / "one" / entry.name / "features").read_bytes()
    (entry / "features").write_bytes(raw[: 6 * row + 100])  # killed while writing row 6
    caplog.set_level(logging.INFO)
    (resumed,) = open_store(tmp_path / "two").features(origin, pictures, [cut])
    assert "at image 4 of 14" in caplog.text
    assert torch.equal(resumed, whole)


def test_a_damaged_entry_is_computed_again_and_said(job, tmp_path, caplog, open_store):
    data, origin = source(job())
    pictures = pictures_of(data)[0]
    store = open_store(tmp_path / "features")
    (before,) = [f.clone() for f in store.features(origin, pictures, [5])]
    store.close()
    file = tmp_path / "features" / fingerprint(origin, pictures, 5) / "features"
    file.write_bytes(file.read_bytes()[:-1])
    (after,) = open_store(tmp_path / "features").features(origin, pictures, [5])
    assert "is damaged" in caplog.text
    assert torch.equal(before, after)


def test_one_pass_serves_several_cuts(job, tmp_path, monkeypatch, open_store):
    data, origin = source(job())
    store = open_store(tmp_path / "features")
    calls = []
    forward = cache._forward
    monkeypatch.setattr(cache, "_forward", lambda *a: calls.append(len(a[1])) or forward(*a))
    pooled, features = store.features(origin, pictures_of(data)[1], [5, 4])
    assert calls == [1, 4, 4, 4, 2]  # a trial for the shapes, then 14 images once
    assert pooled.shape == (14, 1024, 1, 1)
    assert features.shape == (14, 192, 1, 1)
    assert store.features(origin, pictures_of(data)[1], [4])[0].shape == features.shape
    assert calls[5:] == [1]


def test_whatever_the_features_depend_on_is_in_their_name(job, image_folder):
    names = []
    for overrides in (
        [], ["seed=1"], ["data.image_size=40"], ["data.resize=squash"],
        LIGHT, ["seed=1", *LIGHT], [*LIGHT, "augment.rotation_range=3"],
        [*LIGHT, "augment.mixup=0.2"], [*LIGHT, "augment.cutmix=0.2"],
    ):  # fmt: skip
        data, origin = source(job(*overrides, folder=f"run {len(names)}"))
        with torch.no_grad():  # the weights follow the seed; here only the rest is looked at
            for parameter in origin.classifier.parameters():
                parameter.fill_(0.5)
        names += [fingerprint(origin, pictures, 5) for pictures in pictures_of(data)[1:]]
    assert len(set(names)) == len(names) == 4 + 5 * 2
    data, origin = source(job())
    val = pictures_of(data)[0]
    before = fingerprint(origin, val, 5)
    assert fingerprint(origin, val, 4) != before
    with torch.no_grad():
        next(origin.classifier.head.parameters()).add_(1)
        assert fingerprint(origin, val, 5) == before  # the head comes after the features
        next(origin.classifier.parameters()).add_(1e-3)
    assert fingerprint(origin, val, 5) != before


def test_mixed_features_depend_on_every_image_that_may_be_a_partner(job):
    data, origin = source(job(*MIXED))
    train = pictures_of(data)[1]
    before = fingerprint(origin, train, 5)
    for change in ({"sha256": "0" * 64}, {"path": "red/other.png"}):
        samples = [*train.samples[:-1], replace(train.samples[-1], **change)]
        assert fingerprint(origin, replace(train, samples=samples), 5) != before


def test_the_least_recently_used_go_first_and_nothing_in_use(job, tmp_path, open_store):
    data, origin = source(job())
    val, train = pictures_of(data)
    folder = tmp_path / "features"
    old = open_store(folder)
    old.features(origin, val, [5])
    size = 5 * 1024 * 4
    used = open_store(folder)
    used.features(origin, val, [4])
    old.close()  # the entry of cut 5 is free now, that of cut 4 in use
    os.utime(folder / fingerprint(origin, val, 4) / "entry.json", (0, 0))
    open_store(folder, size + 14 * 192 * 4).features(origin, train, [4])
    left = {path.parent.name for path in folder.glob("*/entry.json")}
    assert left == {fingerprint(origin, val, 4), fingerprint(origin, train, 4)}


def test_no_room_is_no_cache_or_an_error(job, caplog):
    (head, top) = train_stages(job("cache.max_bytes=1e3"))
    assert (head.cached, top.cached) == (False, False)
    assert "cannot hold the features" in caplog.text
    with pytest.raises(UserError, match="cache=on: .* cannot hold the features"):
        train_stages(job("cache=on", "cache.max_bytes=1e3", folder="other"))


def test_no_cache_where_it_is_not_exact_or_does_not_pay(job):
    for overrides in (["augment=light"], ["stage.head.batchnorm=statistics"]):
        assert not train_stages(job(*overrides, folder=str(overrides)))[0].cached
    results = train_stages(job("stage.head.epochs=1", "stage.top.epochs=1", *LIGHT, folder="few"))
    assert [result.cached for result in results] == [False, False]
