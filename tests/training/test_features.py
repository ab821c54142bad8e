"""The feature cache: the same numbers, computed once, never stale."""

import errno
import fcntl
import json
import logging
import os
import shutil
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import product
from signal import SIGTERM, getsignal
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm

from tlx.composition import compose
from tlx.config import parse
from tlx.data.datasets import FeatureDataset
from tlx.errors import UserError
from tlx.models import winograd
from tlx.models.folder import Architecture, build_classifier
from tlx.models.preprocess import Preprocess
from tlx.models.winograd import Grid, WinogradConv2d
from tlx.training import cache_estimate, run
from tlx.training import features as cache
from tlx.training.cache_folder import contents
from tlx.training.checkpoints import STOP_SIGNALS, Interrupted
from tlx.training.feature_store import FORMAT, FeatureStore, Part
from tlx.training.features import (
    Rows,
    Source,
    entry_of,
    features,
    fingerprint,
    pictures_of,
)
from tlx.training.inputs import (
    evaluation_pictures,
    feature_store,
    image_data,
    split_features,
    stage_features,
)
from tlx.training.job import prepare
from tlx.training.module import StageModule
from tlx.training.plan import stage_views, why_not_cached
from tlx.training.run import train_stages

MIRRORS = ["augment.horizontal_flip=true", "augment.vertical_flip=true"]
LIGHT = ["augment=light", "cache.views=2"]
MIXED = [*LIGHT, "augment.mixup=1", "augment.cutmix=1", "label_smoothing=0.1",
         "data.class_weights={red: 2}", "data.sampling=balanced"]  # fmt: skip


@pytest.fixture
def job(image_folder, tmp_path):
    def make(*overrides, folder="run"):
        settings = [
            "backbone=shufflenet_v2_x0_5", "backbone.weights=null", "data=folder",
            f"data.root={image_folder}", "data.image_size=32", "data.batch_size=4",
            "data.keep_together=none", "trainer=cpu", "trainer.precision=32", "verbosity=plain",
            "report=none", "stage.head.epochs=3", "stage.top.epochs=3",
            f"cache.dir={tmp_path}/features",
        ]  # fmt: skip
        return prepare(parse(compose([*settings, *overrides])), tmp_path / folder)

    return make


@pytest.fixture
def open_store():
    with ExitStack() as stack:
        yield lambda folder, size=10**9: stack.enter_context(closing(FeatureStore(folder, size)))


def data_of(run):
    data = image_data(run)
    data.views = stage_views(run.config, run.model.classifier, run.config.stages[0])
    return data


def source(run):
    data = data_of(run)
    return data, Source(
        run.model.classifier, run.model.preprocess,
        device=torch.device("cpu"), bf16=False, batch_size=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [[], LIGHT, MIXED, ["stage.top.train_from=stage4.2.branch2"]],
    ids=["plain", "two views", "mixed, smoothed, weighted", "cut inside a block"],
)
def test_cached_training_takes_the_same_steps(job, monkeypatch, overrides):
    assert_same_steps(job, monkeypatch, overrides, overrides)


def test_the_same_steps_with_all_convolutions_by_winograd(job, monkeypatch):
    monkeypatch.setattr(
        winograd, "best_grid", lambda shape, _, p, dtype, back: Grid.of(shape, p, 4)
    )
    overrides = ["backbone=squeezenet1_1", "data.image_size=64"]
    modules = list(job(*overrides).model.classifier.modules())
    assert any(isinstance(m, WinogradConv2d) for m in modules)
    assert_same_steps(job, monkeypatch, overrides, overrides)


def test_a_cached_stage_has_eight_views_where_nothing_says_how_many(job, monkeypatch):
    """Without the cache there would be a new one every epoch."""
    light = ["augment=light", "stage.head.epochs=6", "stage.top.epochs=6"]
    assert_same_steps(job, monkeypatch, light, [*light, "cache.views=8"], epochs=12)


def test_limited_epochs_take_turns_in_as_many_views(job, monkeypatch):
    light, seen = ["augment=light", "trainer.limit_epochs=1"], set()
    read = FeatureDataset.__getitems__

    def spy(self, items):
        if len(self) == 14:  # train
            seen.update(view for _, view in items)
        return read(self, items)

    monkeypatch.setattr(FeatureDataset, "__getitems__", spy)
    assert_same_steps(job, monkeypatch, light, [*light, "cache.views=2"], epochs=2)
    assert seen == {0, 1}


def assert_same_steps(job, monkeypatch, cached, uncached, epochs=6):
    losses = {}
    for mode, overrides in (("on", cached), ("off", uncached)):
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
    assert len(losses["on"]) == epochs * 4
    torch.testing.assert_close(losses["on"], losses["off"], atol=1e-5, rtol=0)


def test_an_interrupted_extraction_goes_on_where_it_stopped(job, tmp_path, monkeypatch, open_store):
    """Part after part, of the same batches as without a break: the same bits."""
    data, origin = source(job())
    pictures = pictures_of(data)[1]
    monkeypatch.setattr(cache, "PART_ROWS", 7)  # rounded up to two batches of 4
    whole = [
        f.tensor.clone()
        for f in features(open_store(tmp_path / "one"), origin, pictures, [(5, 0), (4, 0)])
    ]
    seen = []
    forward = Source.forward

    def killed(self, images, cuts):
        seen.append(len(images))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return forward(self, images, cuts)

    store = open_store(tmp_path / "two")
    with monkeypatch.context() as patch:
        patch.setattr(Source, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            features(store, origin, pictures, [(5, 0), (4, 0)])
        store.close()
        del seen[:]
        seen.extend("ab")  # two more calls until the next end
        resumed = open_store(tmp_path / "two")
        with pytest.raises(KeyboardInterrupt):
            features(resumed, origin, pictures, [(5, 0), (4, 0)])
        assert seen == ["a", "b", 4, 2]
        resumed.close()
    found = features(open_store(tmp_path / "two"), origin, pictures, [(5, 0), (4, 0)])
    for rows, expected in zip(found, whole, strict=True):
        assert torch.equal(rows.tensor, expected)


@pytest.mark.parametrize(("number", "workers"), [*product(STOP_SIGNALS, (0,)), (SIGTERM, 2)])
def test_a_signal_ends_the_extraction_and_leaves_what_is_computed(
    job, tmp_path, monkeypatch, number, workers
):
    """In the middle of a write, the last of train's second part; each part is of two entries."""
    monkeypatch.setattr(cache, "PART_ROWS", 4)
    overrides = ["cache=on", f"data.num_workers={workers}"]
    handlers, written = [getsignal(number) for number in STOP_SIGNALS], []
    write = Part.write

    def interrupted(self, entry, data):
        written.append(self.rows)
        write(self, entry, data[: len(data) // 2] if len(written) == 8 else data)
        if len(written) == 8:
            os.kill(os.getpid(), number)
            time.sleep(5)  # which the signal cuts short

    with monkeypatch.context() as patch:
        patch.setattr(Part, "write", interrupted)
        with pytest.raises(Interrupted, match=number.name) as stop:
            train_stages(job(*overrides))
    assert stop.value.exit_code == 128 + number
    assert [getsignal(number) for number in STOP_SIGNALS] == handlers
    assert written[::2] == [range(4), range(4, 5), range(4), range(4, 8)]  # of val, of train
    with monkeypatch.context() as patch:
        patch.setattr(Part, "write", lambda *args: (written.append(args[0].rows), write(*args)))
        results = train_stages(job(*overrides))
    assert written[8::2] == [range(4, 8), range(8, 12), range(12, 14)]
    fresh = train_stages(job(*overrides, f"cache.dir={tmp_path}/other", folder="fresh"))
    assert [r.best for r in results] == [r.best for r in fresh]


def test_features_are_those_of_the_network(job, tmp_path, open_store):
    """Against a plain loop, and as the item that training reads."""
    data, origin = source(job(*LIGHT))
    pictures = pictures_of(data)[2]
    (rows,) = features(open_store(tmp_path), origin, pictures, [(3, 0)])
    backbone = origin.classifier.backbone
    assert len(rows.tensor) == 14
    for index in (0, 5, 13):
        image = pictures.dataset[index, 1][0]
        with torch.no_grad():
            expected = backbone(origin.preprocess.normalize(image[None]), 0, 3)[0]
        torch.testing.assert_close(rows.tensor[index], expected, atol=1e-5, rtol=1e-5)


def test_what_follows_a_cut_in_place_leaves_its_features_alone():
    preprocess = Preprocess.for_weights("vgg11", None, image_size=32)
    torch.manual_seed(0)
    classifier = build_classifier(Architecture("vgg11", 32, 2, "avg", (), "relu", 0.0)).eval()
    origin = Source(classifier, preprocess, torch.device("cpu"), bf16=False, batch_size=2)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        found = origin.forward(images, [(4, 1), (5, 0)])[4, 1]
        expected = classifier.backbone(preprocess.normalize(images), 0, (4, 1))
    torch.testing.assert_close(found, expected)
    assert found.min() < 0  # a ReLU comes next


def test_a_place_inside_a_block_is_the_furthest_that_nothing_learns_before(job):
    classifier = job().model.classifier
    for train_from, cut in (
        ("stem", (0, 0)), ("stem.maxpool", (0, 1)), ("stage4", (3, 0)), ("stage4.2", (3, 2)),
        ("stage4.2.branch2.3", (3, 2)), ("head", (5, 0)), ("all", (0, 0)),
    ):  # fmt: skip
        assert classifier.cut(train_from) == cut
    nothing = why_not_cached(
        job().config, classifier, replace(job().config.stages[0], train_from="all")
    )
    assert nothing == "nothing before what learns is wholly frozen"


def test_reading_keeps_few_pages_in_memory(tmp_path, open_store, monkeypatch):
    """Resident pages of both mappings, as the system counts them, while all rows are read twice."""
    entry = cache.Entry("a" * 40, 64, 1 << 16, 64, {})
    store = open_store(tmp_path)

    def compute(parts):
        for part in parts:
            for row in part.rows:
                part.write(entry, bytes([row]) * entry.row_bytes)
            part.finish()

    store.hold(entry)
    store.fill([entry], compute)
    monkeypatch.setattr(cache, "MOST_RESIDENT", 1 << 19)
    views = [Rows(store, entry, (1 << 16,), torch.uint8) for _ in range(2)]
    most = 0
    for index in [*range(64), *reversed(range(64))]:
        for rows in views:
            assert rows.index_select(0, torch.tensor([index])).sum() == index << 16
        if index % 8 == 5:
            most = max(most, resident(store.file(entry)))
    assert 1 << 17 < most < 3 << 18


def resident(file):
    """Bytes of the file that are mapped into this process's memory."""
    with open("/proc/self/smaps") as lines:
        mine, found = False, 0
        for line in lines:
            if "-" in line.split(" ", 1)[0]:
                mine = str(file) in line
            elif mine and line.startswith("Rss:"):
                found += int(line.split()[1]) * 1024
    return found


def test_one_pass_serves_several_cuts(job, tmp_path, monkeypatch, open_store):
    data, origin = source(job())
    store = open_store(tmp_path / "features")
    calls = []
    forward = Source.forward
    monkeypatch.setattr(
        Source, "forward", lambda self, x, cuts: calls.append(len(x)) or forward(self, x, cuts)
    )
    pooled, maps = features(store, origin, pictures_of(data)[1], [(5, 0), (4, 0)])
    assert calls == [1, 1, 4, 4, 4, 2]  # a trial for each shape, then 14 images once
    assert pooled.tensor.shape == (14, 1024, 1, 1)
    assert maps.tensor.shape == (14, 192, 1, 1)
    assert torch.equal(
        features(store, origin, pictures_of(data)[1], [(4, 0)])[0].tensor, maps.tensor
    )
    assert len(calls) == 6


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
        names += [fingerprint(origin, pictures, (5, 0)) for pictures in pictures_of(data)[1:]]
    assert len(set(names)) == len(names) == 4 + 5 * 2
    data, origin = source(job())
    val = pictures_of(data)[0]
    before = fingerprint(origin, val, (5, 0))
    assert fingerprint(origin, val, (4, 0)) != before
    assert fingerprint(replace(origin, bf16=True), val, (5, 0)) != before
    with torch.no_grad():
        next(origin.classifier.head.parameters()).add_(1)
        assert (
            fingerprint(replace(origin), val, (5, 0)) == before
        )  # the head comes after the features
        next(origin.classifier.parameters()).add_(1e-3)
    assert fingerprint(replace(origin), val, (5, 0)) != before


def test_a_stages_own_fit_leaves_the_names_of_frozen_features(job):
    data, origin = source(job())
    val = pictures_of(data)[0]
    before = fingerprint(origin, val, (5, 0))
    for module in origin.classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.01
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(origin.classifier)
    assert fingerprint(replace(origin), val, (5, 0)) == before
    TorchSyncBatchNorm().revert(origin.classifier)  # as Lightning does after a fit
    assert fingerprint(replace(origin), val, (5, 0)) == before


def test_images_changed_on_disk_are_computed_again(job, image_folder, write_image):
    """The same folder, the same cache: one file differs, and with it the features of its split."""
    origin, data = None, None
    entries = []
    for colour in ((30, 60, 220), (31, 60, 220)):
        write_image(image_folder / "blue/0.png", colour)
        data, origin = source(job(folder=f"run {colour}"))
        entries += [[entry_of(origin, p, (5, 0)).name for p in pictures_of(data)]]
    changed = [a != b for a, b in zip(*entries, strict=True)]
    split = {s.path: s.split for s in data.manifest.samples}["blue/0.png"]
    assert changed == [split == "val", split == "train"]


def test_features_are_of_the_files_that_they_are_kept_for(job, tmp_path, write_image):
    """Changed after they were listed, before they are read."""
    run = job("cache=on")
    path = run.manifest.root / run.manifest.split("train")[0].path
    before = path.read_bytes()
    write_image(path, (1, 2, 3))
    with pytest.raises(UserError, match=f"{path.name} has changed since the images were listed"):
        train_stages(run)
    path.write_bytes(before)
    restored, fresh = train_stages(run), train_stages(job("cache=on", folder="fresh"))
    assert [r.best for r in restored] == [r.best for r in fresh]
    other = job("cache=on", f"cache.dir={tmp_path}/other", folder="other")
    assert [r.best for r in train_stages(other)] == [r.best for r in fresh]


def test_another_format_is_another_name_and_is_cleared(job, tmp_path, monkeypatch, open_store):
    data, origin = source(job())
    store = open_store(tmp_path / "features")
    features(store, origin, pictures_of(data)[0], [(5, 0)])
    monkeypatch.setattr(cache, "FORMAT", 99)
    features(store, origin, pictures_of(data)[0], [(5, 0)])
    assert {item.about["format"] for item in contents(tmp_path / "features")} == {FORMAT}
    assert len(contents(tmp_path / "features")) == 2


def test_mixed_features_depend_on_every_image_that_may_be_a_partner(job):
    data, origin = source(job(*MIXED))
    train = pictures_of(data)[1]
    before = fingerprint(origin, train, (5, 0))
    other = replace(
        train, samples=[*train.samples[:-1], replace(train.samples[-1], sha256="0" * 64)]
    )
    assert fingerprint(origin, other, (5, 0)) != before
    train.dataset.keys = [*train.dataset.keys[:-1], 0]  # as another path would have it
    assert fingerprint(origin, replace(train), (5, 0)) != before


def test_mirror_images_are_the_same_for_every_seed(job):
    """With one split, so are their features: the second seed finds the first one's."""
    found = []
    for seed in (0, 1):
        run = job(f"seed={seed}", "data.split_seed=0", "tta=4", *MIRRORS, folder=f"run {seed}")
        data, origin = source(run)
        assert len(pictures_of(data)) == 1 + 4
        with torch.no_grad():  # the weights follow the seed
            for parameter in origin.classifier.parameters():
                parameter.fill_(0.5)
        seen = [*pictures_of(data), *evaluation_pictures(run, "test")]
        found.append([fingerprint(origin, pictures, (5, 0)) for pictures in seen])
    assert found[0] == found[1]
    assert len(set(found[0])) == 1 + 4 + 4


def cached(run):
    """Whether the first stage would train on features."""
    with closing(feature_store(run)) as store:
        return stage_features(run, 0, data_of(run), store) is not None


def test_no_cache_where_it_is_not_exact_or_does_not_pay(job, caplog):
    caplog.set_level(logging.INFO)
    for overrides, reason in [
        (["augment=light"], "No cache: it does not pay in 6 epochs over 6 views of each image"),
        (["stage.head.batchnorm=statistics"], "batchnorm=statistics lets frozen blocks change"),
        (["stage.head.epochs=1", "stage.top.epochs=1", *LIGHT],
         "No cache: it does not pay in 2 epochs over 2 views of each image"),
    ]:  # fmt: skip
        assert not cached(job(*overrides, folder=str(overrides)))
        assert reason in caplog.text


def test_no_room_is_no_cache_or_an_error(job, caplog):
    assert not cached(job("cache.max_bytes=1e3"))
    assert "cannot hold the features" in caplog.text
    with pytest.raises(UserError, match="cache=on: .* cannot hold the features"):
        cached(job("cache=on", "cache.max_bytes=1e3", folder="other"))


def test_a_disk_with_room_for_some_views_gets_none(job, tmp_path, monkeypatch, caplog):
    room = 8 * 4 * (1024 + 192)  # val and train without augmentation take 19 images' worth
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=room))
    assert not cached(job())
    assert "0.0 MB are free on the disk" in caplog.text
    assert not [path for path in (tmp_path / "features").iterdir() if path.is_dir()]


@pytest.mark.parametrize(("room", "entries"), [(1.0, 2 + 2), (0.99, 2), (0.1, 0)])
def test_later_stages_share_the_pass_if_there_is_room_for_all(job, tmp_path, room, entries):
    """19 images of train and val: 1,024 numbers each before the head, 192 before the last block."""
    both = 19 * 4 * (1024 + 192)
    assert cached(job(f"cache.max_bytes={room * both}")) == (entries > 0)
    assert len(list((tmp_path / "features").glob("*/entry.json"))) == entries


def test_a_disk_with_room_for_the_stages_own_gets_those(job, tmp_path, monkeypatch):
    """19 images, as above; the entries before the last block would be later stages'."""
    room = 19 * 4 * 1024
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=room))
    assert cached(job())
    assert len(list((tmp_path / "features").glob("*/entry.json"))) == 2


def test_a_run_keeps_to_its_bytes_and_caches_all_of_its_stages(job, tmp_path, monkeypatch):
    """Each stage's features take the place of those of the stage before, which are not open any
    more."""
    most = 19 * 4 * 1024 + 1000
    open_at, begin = [], run.stage_features

    def spy(*arguments):
        open_at.append(len(Rows._all))
        return begin(*arguments)

    monkeypatch.setattr(run, "stage_features", spy)
    results = train_stages(job("cache=on", f"cache.max_bytes={most}"))
    assert [result.cached for result in results] == [True, True]
    assert open_at == [0, 0]
    files = (tmp_path / "features").glob("*/features")
    assert sum(file.stat().st_size for file in files) < most


def test_epochs_that_will_not_be_do_not_pay(job, caplog):
    caplog.set_level(logging.INFO)
    assert not cached(job("trainer.limit_epochs=1", *LIGHT))
    assert "No cache: it does not pay in 2 epochs over 2 views" in caplog.text


@pytest.mark.parametrize(("rate", "pays"), [(1e9, True), (1e3, False)])
def test_a_disk_slower_than_the_network_is_not_used(job, monkeypatch, caplog, rate, pays):
    """19 images, 10 ms each: 1.1 s in 6 epochs; reading 4 KB each at 1 KB/s would take minutes."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cache_estimate, "_seconds_an_image", lambda _: 0.01)
    monkeypatch.setattr(cache_estimate, "_bytes_a_second", lambda *_: rate)
    run = job()
    assert cached(run) == pays
    assert ("0.2 s in all against 1.1 s" if pays else "No cache, it does not pay") in caplog.text
    assert json.loads((run.folder / "cache.json").read_text()) == {"head": pays}


def test_a_resumed_run_decides_as_it_did_before(job, monkeypatch, caplog):
    """Though the disk is found to be slow now, or fast: the numbers' last bits depend on it."""
    caplog.set_level(logging.INFO)
    for earlier in (True, False):
        caplog.clear()
        run = job(f"seed={int(earlier)}", folder=f"run {earlier}")
        (run.folder / "cache.json").write_text(json.dumps({"head": earlier}))
        rate = 1.0 if earlier else 1e9
        monkeypatch.setattr(cache_estimate, "_bytes_a_second", lambda *_, rate=rate: rate)
        assert cached(run) == earlier
        assert ("No cache in stage head: when the run began" in caplog.text) == (not earlier)


def test_what_a_run_measured_that_never_trained_does_not_decide_for_the_next(job, monkeypatch):
    def left(run):
        for name in ("cache.json", "precision.json"):
            (run.folder / name).write_text("{}")
        job()
        return sorted(path.name for path in run.folder.glob("*.json"))

    run = job()
    assert left(run) == ["findings.json"]
    with monkeypatch.context() as patch:
        for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
            patch.setenv(name, value)
        assert "cache.json" in left(run)  # torchrun's other process may have read it
    (run.folder / "checkpoints").mkdir()
    assert left(run) == ["cache.json", "findings.json", "precision.json"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.ENOLCK, errno.EROFS])
def test_a_folder_that_fails_is_no_cache_and_the_run_goes_on(
    job, tmp_path, monkeypatch, caplog, error
):
    def fail(*_):
        raise OSError(error, os.strerror(error))

    run = job()
    monkeypatch.setattr(*((Part, "write") if error == errno.ENOSPC else (fcntl, "flock")), fail)
    assert not cached(run)
    assert f"cannot hold the features: [Errno {error}] {os.strerror(error)}" in caplog.text
    assert contents(tmp_path / "features") == []


def test_features_of_a_split_are_those_before_the_last_stage_for_every_view(job):
    views, cut = split_features(job("tta=4", *MIRRORS), "val")
    assert (cut, [rows.tensor.shape for rows in views]) == ((4, 0), [(5, 192, 1, 1)] * 4)
    for rows in views[1:]:
        assert not torch.equal(rows.tensor, views[0].tensor)
