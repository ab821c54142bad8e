"""The stages of a run, in order: each is one `Trainer.fit`."""

import gc
import json
import logging
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from tlx.data.datamodule import ImageData
from tlx.files import write_json
from tlx.models.backbones import Place
from tlx.models.classifier import parameter_table
from tlx.models.folder import load_weights
from tlx.specs import StageSpec
from tlx.training.averaging import WeightAverage
from tlx.training.checkpoints import STOP_SIGNALS, Checkpoints, Interrupted, resume_point
from tlx.training.devices import build_trainer, choose_device, start_processes
from tlx.training.drift import BatchNormDrift
from tlx.training.inputs import feature_store, image_data, stage_features
from tlx.training.job import Job
from tlx.training.l2_sp import TowardPretrained
from tlx.training.lr_finder import Sweep, find_rate, sweep
from tlx.training.module import StageModule
from tlx.training.plan import stage_epochs, stage_views
from tlx.training.scalars import Scalars
from tlx.training.screen import Bar, EpochLines, has_bar
from tlx.training.unfreezing import StagedUnfreezing, apply_stage

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


def train_stages(job: Job) -> list[StageResult]:
    """Train stage after stage, each from the weights that the one before hands over.

    A stage that the run's folder holds as done is not trained again; a begun one goes on. On
    return the classifier has those of the last stage. Raises `Interrupted` on a signal.
    """
    results: list[StageResult] = []
    data = image_data(job)
    with closing(feature_store(job)) as store:
        for index, stage in enumerate(job.config.stages):
            place = job.folder / "checkpoints" / stage.name
            if not (place / "done.json").exists():
                with _quiet():
                    start_processes(job.config.trainer, job.folder)
                before = job.config.stages[:index]
                data.epoch_offset = sum(stage_epochs(job.config, s) for s in before)
                data.views = stage_views(job.config, job.model.classifier, stage)
                data.features = data.trainer = None
                gc.collect()  # Lightning's cycles, which would keep the last stage's features open
                with _stopping_at_once():
                    data.features = stage_features(job, index, data, store)
                first_step = sum(result.steps for result in results)
                result = _train_stage(job, stage, data, place, first_step)
                if job.is_first_process:
                    write_json(place / "done.json", asdict(result))
            else:
                result = StageResult(**json.loads((place / "done.json").read_text("utf-8")))
            results.append(result)
            load_weights(place / "weights.safetensors", job.model.classifier)
    return results


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
    if job.is_first_process:
        for left in place.glob(".*"):  # half-written when a process was killed
            left.unlink()
    cached = data.features is not None
    start = classifier.cut(stage.train_from) if cached else None
    if stage.find_lr:
        stage = find_rate(stage, place, lambda: _sweep(job, stage, data, start))
    average = WeightAverage(classifier, stage.ema) if stage.ema is not None else None
    checkpoints = Checkpoints(
        place,
        classifier,
        monitor=job.config.monitor,
        stage=stage,
        every=job.config.trainer.checkpoint_steps,
        average=average,
    )
    callbacks: list[Callback] = [StagedUnfreezing(classifier, stage), checkpoints]
    if average is not None:
        callbacks.append(average)
    if stage.l2_sp is not None:
        callbacks.append(TowardPretrained(classifier, job.pretrained, stage.l2_sp))
    scalars = None
    if job.is_first_process:
        scalars = Scalars(job.folder, classifier, stage, first_step=first_step)
        callbacks += [scalars, EpochLines(stage)]
        if has_bar(job.config.verbosity):
            callbacks.append(Bar(stage, _epochs_after(job, stage)))
    callbacks.append(BatchNormDrift(classifier, job.statistics, scalars))
    limits = job.config.trainer
    module = StageModule(
        classifier,
        job.model.preprocess,
        stage,
        seed=job.config.seed,
        start=start,
        compiled=limits.compile,
    )
    with _quiet(), _restored_signals():
        trainer = build_trainer(
            limits,
            job.precision,
            job.folder,
            max_epochs=stage_epochs(job.config, stage),
            callbacks=callbacks,
            enable_progress_bar=False,
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
        seconds=round(time.monotonic() - started + checkpoints.earlier, 3),
        trainable_parameters=trainable,
        total_parameters=total,
        cached=cached,
        best=checkpoints.score,
        best_epoch=checkpoints.best_epoch,
        steps=trainer.global_step,
    )


def _epochs_after(job: Job, stage: StageSpec) -> int:
    """At most so many epochs follow the stage's."""
    names = [s.name for s in job.config.stages]
    later = job.config.stages[names.index(stage.name) + 1 :]
    return sum(stage_epochs(job.config, s) for s in later)


def _sweep(job: Job, stage: StageSpec, data: ImageData, start: Place | None) -> Sweep:
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
    """Undo what tlx (see Checkpoints) and Lightning do to the handlers of signals."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stopping_at_once() -> Iterator[None]:
    """Raise `Interrupted` on a signal: there is no step to wait for. What is computed stays."""
    process = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() == process:  # those that read images for it end with it
            raise Interrupted(number)

    with _restored_signals():
        for number in STOP_SIGNALS:
            signal.signal(number, stop)
        yield


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
