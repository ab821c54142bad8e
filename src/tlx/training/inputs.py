"""What a stage trains on: images, or from the cache what frozen blocks make of them."""

import logging
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from tlx.data.augment import Augment
from tlx.data.datamodule import ImageData
from tlx.data.datasets import Features
from tlx.data.targets import TargetPolicy
from tlx.errors import UserError
from tlx.files import cache_dir
from tlx.training.devices import choose_device
from tlx.training.features import FeatureStore, Source, pictures_of
from tlx.training.job import Job
from tlx.training.plan import views, why_not_cached

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
    if config.cache.mode == "off" or data.views is None:
        return None
    mine = classifier.locate(config.stages[index].train_from)
    cuts, epochs = [], 0
    for stage in config.stages[index:]:
        cut = classifier.locate(stage.train_from)
        if cut <= mine and why_not_cached(config, classifier, stage) is None:
            cuts.append(cut)
            epochs += stage.epochs
    if mine not in cuts or (config.cache.mode == "auto" and epochs <= data.views):
        return None
    log.info("Cache: images pass the frozen blocks %d instead of %d times.", data.views, epochs)
    source = _source(job, data)
    started = time.monotonic()
    try:
        found = [
            store.features(source, pictures, cuts)[cuts.index(mine)]
            for pictures in pictures_of(data)
        ]
    except OSError as error:
        if config.cache.mode == "on":
            raise UserError(f"cache=on: {store.folder} cannot hold the features: {error}") from None
        log.warning("No cache: %s cannot hold the features: %s.", store.folder, error)
        return None
    log.info("Cache: ready after %.1f s (%s).", time.monotonic() - started, store.folder)
    return Features(train=found[1:], val=found[0])


def val_features(job: Job) -> tuple[Tensor, int]:
    """What the last stage's frozen blocks make of val, from the cache, and the block they go to."""
    cut = job.model.classifier.locate(job.config.stages[-1].train_from)
    data = image_data(job)
    with closing(feature_store(job)) as store:
        return store.features(_source(job, data), pictures_of(data)[0], [cut])[0], cut


def _source(job: Job, data: ImageData) -> Source:
    return Source(
        job.model.classifier,
        job.model.preprocess,
        data.augment,
        job.config.seed,
        device=choose_device(job.config.trainer.accelerator),
        bf16=job.precision == "bf16-mixed",
        batch_size=job.config.data.batch_size,
    )


def image_data(job: Job) -> ImageData:
    settings = job.config.data
    return ImageData(
        job.manifest,
        job.model.preprocess,
        augment=Augment(**asdict(job.config.augment)),
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        seed=job.config.seed,
        views=views(job.config),
        decoding=job.model.preprocess.decoding,
        policy=TargetPolicy(
            job.config.label_smoothing, settings.soft_labels, settings.class_weights
        ),
        balanced=settings.sampling == "balanced",
    )
