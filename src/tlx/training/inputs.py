"""What a stage trains on: images, or from the cache what frozen blocks make of them."""

import json
import logging
import os
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import torch

from tlx.data.augment import Augment
from tlx.data.datamodule import ImageData, share_of_batch
from tlx.data.datasets import Features
from tlx.data.decoded import DecodeCache
from tlx.data.loaders import auto_workers, prediction_dataset
from tlx.data.targets import TargetPolicy
from tlx.data.tta import tta_augment
from tlx.errors import UserError
from tlx.files import cache_dir, write_json
from tlx.models.backbones import Place
from tlx.training.cache_estimate import Task, pays
from tlx.training.devices import choose_device, process_count
from tlx.training.feature_store import FeatureStore
from tlx.training.features import Pictures, Rows, Source, features, pictures_of
from tlx.training.job import Job
from tlx.training.plan import stage_epochs, why_not_cached

log = logging.getLogger(__name__)


def feature_store(job: Job) -> FeatureStore:
    settings = job.config.cache
    folder = Path(settings.dir).expanduser() if settings.dir else cache_dir() / "features"
    return FeatureStore(folder, int(settings.max_bytes))


def stage_features(job: Job, index: int, data: ImageData, store: FeatureStore) -> Features | None:
    """The stage's inputs from the cache, where that is exact and pays; else None: images.

    The pass that serves this stage also serves the later ones whose frozen blocks are among its
    own.
    """
    config, classifier = job.config, job.model.classifier
    stage = config.stages[index]
    if config.cache.mode == "off":
        return None
    if (reason := why_not_cached(config, classifier, stage)) is not None:
        log.info("No cache in stage %s: %s.", stage.name, reason)
        return None
    started = time.monotonic()
    try:
        task = _task(job, index, data, store)
        if config.cache.mode == "auto" and not _pays(job, stage.name, task, store):
            return None
        found = [features(store, task.source, p, task.cuts)[0] for p in task.pictures]
    except OSError as error:
        store.hold_only([])
        if config.cache.mode == "on":
            raise UserError(f"cache=on: {store.folder} cannot hold the features: {error}") from None
        log.warning("No cache: %s cannot hold the features: %s.", store.folder, error)
        return None
    log.info("Cache: ready after %.1f s, views of each image: %d (%s).",
             time.monotonic() - started, len(found) - 1, store.folder)  # fmt: skip
    return Features(train=found[1:], val=found[0])


def _task(job: Job, index: int, data: ImageData, store: FeatureStore) -> Task:
    """The stage's own cut first, then those of later stages if there is room for them too.

    Room for all views, as filling sees one at a time; what the stages before needed may go for it.
    Raises OSError when there is none for the own cut alone.
    """
    config, classifier = job.config, job.model.classifier
    mine = classifier.cut(config.stages[index].train_from)
    served = [
        (cut, stage_epochs(config, stage))
        for stage in config.stages[index:]
        if (cut := classifier.cut(stage.train_from)) <= mine
        and why_not_cached(config, classifier, stage) is None
    ]
    cuts, epochs = zip(*served, strict=True)
    task = Task(_source(job), pictures_of(data), cuts, sum(epochs))
    store.hold_only(task.entries)
    try:
        store.check_room(task.entries)
    except OSError:
        own = sum(epochs for cut, epochs in served if cut == mine)
        task = replace(task, cuts=(mine,), epochs=own)
        store.hold_only(task.entries)
        store.check_room(task.entries)
    return task


def _pays(job: Job, stage: str, task: Task, store: FeatureStore) -> bool:
    """What is decided once for a run holds when it resumes, as the numbers' last bits follow it.

    Several processes must agree, so that they count passes without measuring.
    """
    kept = job.folder / "cache.json"
    decided = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    if stage not in decided:
        measure = process_count(job.config.trainer) == 1
        decided[stage] = pays(task, store, measure=measure)
        if measure:
            write_json(kept, decided)
    elif not decided[stage]:
        log.info("No cache in stage %s: when the run began it did not pay (%s).", stage, kept)
    return bool(decided[stage])


def split_features(job: Job, split: str) -> tuple[list[Rows], Place]:
    """What the last stage's frozen blocks make of a split, and the place where it goes on.

    One entry for each view of `tta`. Raises OSError when the cache cannot hold them.
    """
    cut = job.model.classifier.cut(job.config.stages[-1].train_from)
    source, seen = _source(job), evaluation_pictures(job, split)
    with closing(feature_store(job)) as store:
        return [features(store, source, pictures, [cut])[0] for pictures in seen], cut


def evaluation_pictures(job: Job, split: str) -> list[Pictures]:
    """What evaluation sees of a split: the images themselves, then the other views of tta."""
    config, samples = job.config, job.manifest.split(split)
    augment = tta_augment(Augment(**asdict(config.augment)), config.tta)
    return [
        Pictures(
            split,
            prediction_dataset(
                [job.manifest.root / sample.path for sample in samples],
                job.model.preprocess,
                decoding=job.model.preprocess.decoding,
                augment=augment if view else None,
                seed=config.seed,
            ),
            samples,
            view or None,
        )
        for view in range(config.tta)
    ]


def _source(job: Job) -> Source:
    spec, workers = job.config.trainer, job.config.data.num_workers
    if workers is None:
        workers = auto_workers(process_count(spec) // spec.num_nodes)
    return Source(
        job.model.classifier,
        job.model.preprocess,
        device=_own_device(job),
        bf16=job.precision == "bf16-mixed",
        batch_size=share_of_batch(job.config.data.batch_size, process_count(spec)),
        num_workers=workers,
    )


def _own_device(job: Job) -> torch.device:
    """Of several processes on a machine with several GPUs, each has one."""
    device = choose_device(job.config.trainer.accelerator)
    if device.type == "cuda":
        number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", "0")
        return torch.device("cuda", int(number))
    return device


def image_data(job: Job) -> ImageData:
    settings = job.config.data
    return ImageData(
        job.manifest,
        job.model.preprocess,
        augment=Augment(**asdict(job.config.augment)),
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        seed=job.config.seed,
        decoding=job.model.preprocess.decoding,
        policy=TargetPolicy(
            job.config.label_smoothing, settings.soft_labels, settings.class_weights
        ),
        balanced=settings.sampling == "balanced",
        decode_cache=DecodeCache(settings.decode_cache, int(settings.decode_cache_bytes)),
    )
