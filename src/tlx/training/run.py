"""The stages of a run, in order: each is one `Trainer.fit`."""

import json
import logging
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from tlx.config import Config, StageSpec
from tlx.data.augment import Augment
from tlx.data.datamodule import Features, ImageData
from tlx.data.manifest import Manifest
from tlx.errors import UserError
from tlx.files import cache_dir, locked, write_json
from tlx.models.classifier import parameter_table
from tlx.models.folder import Architecture, SavedModel, build_classifier, load_weights
from tlx.models.weights import resolve_weights
from tlx.training.averaging import WeightAverage
from tlx.training.checkpoints import STOP_SIGNALS, Checkpoints, resume_point
from tlx.training.devices import build_trainer, choose_device, choose_precision
from tlx.training.drift import BatchNormDrift, Statistics, statistics
from tlx.training.features import FeatureStore, Source, pictures_of
from tlx.training.l2_sp import TowardPretrained, pretrained_weights
from tlx.training.lr_finder import Sweep, find_rate, sweep
from tlx.training.module import StageModule
from tlx.training.plan import architecture, preprocessing, read_manifest, views, why_not_cached
from tlx.training.progress import EpochLines, Scalars
from tlx.training.unfreezing import StagedUnfreezing, apply_stage, plain_stages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    """One entry of `stages` in metrics.json; `steps` are the optimizer's, `best` is on val."""

    name: str
    train_from: str
    epochs: int
    seconds: float
    trainable_parameters: int
    total_parameters: int
    cached: bool
    best: float
    best_epoch: int
    steps: int


@dataclass(frozen=True)
class Job:
    """What the stages share, and what evaluation needs of them."""

    config: Config
    folder: Path
    manifest: Manifest
    model: SavedModel
    architecture: Architecture
    precision: str
    statistics: Statistics  # BatchNorm's, before the first stage
    pretrained: Mapping[str, Tensor]  # what L2-SP holds the backbone to; empty without it

    @property
    def is_first_process(self) -> bool:
        return _is_first_process()


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep the run's folder to this process (and the ones it starts) until the run is over."""
    if not _is_first_process():
        yield
        return
    with locked(folder / ".lock", f"another process is training the run in {folder}."):
        yield


def _is_first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def prepare(config: Config, folder: Path) -> Job:
    """Weights, images and the network with its new head; `folder` gets the manifest."""
    if not _is_first_process():
        logging.getLogger("tlx").setLevel(logging.WARNING)
    weights = resolve_weights(config.backbone.name, config.backbone.weights)
    manifest = read_manifest(config)
    preprocess = preprocessing(config, weights.enum if weights else None)
    design = architecture(config, len(manifest.classes), preprocess)
    torch.manual_seed(config.seed)
    classifier = build_classifier(design, weights.state_dict if weights else None)
    config = replace(config, stages=plain_stages(classifier, config.stages))
    if classifier.backbone.is_convolutional:
        classifier.to(memory_format=torch.channels_last)
    model = SavedModel(classifier, preprocess, manifest.classes)
    is_held = any(stage.l2_sp is not None for stage in config.stages)
    pretrained = pretrained_weights(classifier) if is_held else {}
    precision = choose_precision(config.trainer)
    job = Job(
        config, folder, manifest, model, design, precision, statistics(classifier), pretrained
    )
    if job.is_first_process:
        manifest.write(folder / "manifest.csv")
    return job


def train_stages(job: Job) -> list[StageResult]:
    """Train stage after stage, each from the best weights of the one before.

    A stage that the run's folder holds as done is not trained again; a begun one goes on. On
    return the classifier has the last stage's best weights. Raises `Interrupted` on a signal.
    """
    results: list[StageResult] = []
    data = _image_data(job)
    with closing(_store(job)) as store:
        for index, stage in enumerate(job.config.stages):
            place = job.folder / "checkpoints" / stage.name
            if not (place / "done.json").exists():
                data.epoch_offset = sum(s.epochs for s in job.config.stages[:index])
                data.features = _features(job, index, data, store)
                first_step = sum(result.steps for result in results)
                result = _train_stage(job, stage, data, place, first_step)
                if job.is_first_process:
                    write_json(place / "done.json", asdict(result))
            else:
                result = StageResult(**json.loads((place / "done.json").read_text("utf-8")))
            results.append(result)
            load_weights(place / "best.safetensors", job.model.classifier)
    return results


def _store(job: Job) -> FeatureStore:
    settings = job.config.cache
    folder = Path(settings.dir).expanduser() if settings.dir else cache_dir() / "features"
    return FeatureStore(folder, int(settings.max_gb * 1e9))


def _features(job: Job, index: int, data: ImageData, store: FeatureStore) -> Features | None:
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
    log.info("Cache: the frozen blocks run %d times over the images, not %d.", data.views, epochs)
    source = Source(
        classifier,
        job.model.preprocess,
        data.augment,
        config.seed,
        device=choose_device(config.trainer.accelerator),
        bf16=job.precision == "bf16-mixed",
        batch_size=config.data.batch_size,
    )
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


def _image_data(job: Job) -> ImageData:
    settings = job.config.data
    return ImageData(
        job.manifest,
        job.model.preprocess,
        augment=Augment(**asdict(job.config.augment)),
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        seed=job.config.seed,
        views=views(job.config),
    )


def _train_stage(
    job: Job, stage: StageSpec, data: ImageData, place: Path, first_step: int
) -> StageResult:
    """Fit one stage, from its own `last.ckpt` where there is one."""
    started = time.monotonic()
    classifier = job.model.classifier
    apply_stage(classifier, stage)
    rows = parameter_table(classifier)
    trainable, total = sum(r.trainable for r in rows), sum(r.total for r in rows)
    first = classifier.boundary(stage.train_from).path
    log.info("Stage %s: learns from %s on, %s of %s parameters.", stage.name, first,
             f"{trainable:,}", f"{total:,}")  # fmt: skip
    cached = data.features is not None
    start = classifier.locate(stage.train_from) if cached else 0
    if stage.find_lr:
        stage = find_rate(stage, place, lambda: _sweep(job, stage, data, start))
    average = WeightAverage(classifier, stage.ema) if stage.ema is not None else None
    checkpoints = Checkpoints(
        place, classifier, monitor=job.config.monitor, patience=stage.patience, average=average
    )
    callbacks: list[Callback] = [StagedUnfreezing(classifier, stage), checkpoints]
    if average is not None:
        callbacks.append(average)
    if stage.l2_sp is not None:
        callbacks.append(TowardPretrained(classifier, job.pretrained, stage.l2_sp))
    scalars = Scalars(job.folder, first_step=first_step) if job.is_first_process else None
    if scalars is not None:
        callbacks += [scalars, EpochLines(stage)]
    callbacks.append(BatchNormDrift(classifier, job.statistics, scalars))
    progress = job.config.trainer.progress
    bar = sys.stdout.isatty() if progress == "auto" else bool(progress)
    if bar:
        callbacks.append(RichProgressBar())
    limits = job.config.trainer
    epochs = min(stage.epochs, limits.limit_epochs or stage.epochs)
    module = StageModule(classifier, job.model.preprocess, stage, seed=job.config.seed, start=start)
    with _quiet(), _restored_signals():
        trainer = build_trainer(
            limits,
            job.precision,
            job.folder,
            max_epochs=epochs,
            callbacks=callbacks,
            enable_progress_bar=bar,
        )
        trainer.fit(
            module,
            datamodule=data,
            ckpt_path=resume_point(place),
            weights_only=True,
        )
    return StageResult(
        name=stage.name,
        train_from=first,
        epochs=trainer.current_epoch,
        seconds=round(time.monotonic() - started, 3),
        trainable_parameters=trainable,
        total_parameters=total,
        cached=cached,
        best=checkpoints.score,
        best_epoch=checkpoints.best_epoch,
        steps=trainer.global_step,
    )


def _sweep(job: Job, stage: StageSpec, data: ImageData, start: int) -> Sweep:
    return sweep(
        StageModule(
            job.model.classifier, job.model.preprocess, stage, seed=job.config.seed, start=start
        ),
        data,
        device=choose_device(job.config.trainer.accelerator),
        bf16=job.precision == "bf16-mixed",
        clip=job.config.trainer.clip,
        limit=job.config.trainer.limit_train,
    )


@contextmanager
def _restored_signals() -> Iterator[None]:
    """Undo what a stage (see Checkpoints) and Lightning do to the handlers of signals."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says of things tlx means."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*in eval mode at the start of training.*",  # frozen blocks are
            ".*does not have many workers.*",  # chosen by the data module
            ".*dataloader is not resumable.*",  # its sampler is
            ".*available but not used.*",  # asked for
            ".*sync_dist=True.*",  # every process computes the same from all samples
            ".*isinstance.treespec, LeafSpec.*",  # Lightning's own affair
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
