"""What a stage shows on the screen while it trains: a bar, and a line per epoch."""

import logging
import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, Progress, TextColumn

from tlx.specs import StageSpec
from tlx.training.throughput import Throughput

log = logging.getLogger(__name__)


def has_bar(verbosity: str) -> bool:
    return verbosity == "rich" or (verbosity == "auto" and sys.stdout.isatty())


def set_verbosity(verbosity: str) -> None:
    """With `quiet` the screen shows warnings and the result alone; log files stay whole."""
    if verbosity == "quiet":
        for handler in _screen_handlers():
            handler.setLevel(logging.WARNING)


def _screen_handlers() -> list["logging.StreamHandler[Any]"]:
    handlers = logging.getLogger().handlers
    return [h for h in handlers if isinstance(h, logging.StreamHandler) and _shows(h)]


def _shows(handler: "logging.StreamHandler[Any]") -> bool:
    return handler.stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)


class EpochLines(Callback):
    """One log line per epoch, with the time it took."""

    def __init__(self, stage: StageSpec) -> None:
        self.stage = stage

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()  # on a resume within an epoch that epoch does not start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        log.info(
            "%s %d/%d  loss %.4f, val %.4f  accuracy %.4f, val %.4f  %.0f s",
            self.stage.name,
            trainer.current_epoch + 1,
            trainer.max_epochs,
            *(values[k] for k in ("train/loss", "val/loss", "train/accuracy", "val/accuracy")),
            time.monotonic() - self.started,
        )


class Bar(Callback):
    """One line: the stage's epoch, loss, val accuracy, images a second, and the time left.

    The time left is that of the epochs to come at the stage's pace so far: less it is where
    `patience` ends a stage, more where a later stage trains more blocks.
    """

    def __init__(self, stage: StageSpec, epochs_after: int, *, every: float = 0.2) -> None:
        """`epochs_after`: of the stages to come; `every`: seconds between two drawings."""
        self.stage = stage
        self.epochs_after = epochs_after
        self.every = every
        self.progress: Progress | None = None
        self.loss = self.accuracy = "-"
        self.throughput = Throughput()
        self.shown = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(None),
            TextColumn("{task.fields[now]}"),
        )
        self.progress = Progress(*columns, auto_refresh=False, expand=True, transient=True)
        self.task = self.progress.add_task(self.stage.name, total=trainer.max_epochs, now="")
        self.streams = {handler: handler.stream for handler in _screen_handlers()}
        self.progress.start()
        for handler in self.streams:
            handler.setStream(sys.stdout)  # the bar's, so that lines come above it
        epochs: Any = trainer.fit_loop.epoch_progress.current
        in_epoch = 0  # after a resume from an epoch's end the count is still that epoch's
        if epochs.started > epochs.processed:
            in_epoch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self.began = trainer.current_epoch + in_epoch / _batches(trainer)
        self.started = time.monotonic()
        self.throughput.begin()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.throughput.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.throughput.batch_done(len(batch[0]) * trainer.world_size)
        if time.monotonic() - self.shown > self.every:
            self.loss = f"{outputs['loss'].item():.3f}"
            self._show(trainer, batch_idx + 1)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        if time.monotonic() - self.shown > self.every:
            _, _, batch_idx, *_ = args
            self._show(trainer, int(trainer.num_training_batches) + batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.accuracy = f"{float(trainer.callback_metrics['val/accuracy']):.3f}"

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def _show(self, trainer: Trainer, batches: int) -> None:
        """`batches`: how many of the epoch's are done, val's among them."""
        assert self.progress is not None
        self.shown = time.monotonic()
        done = trainer.current_epoch + batches / _batches(trainer)
        pace = (self.shown - self.started) / (done - self.began)  # seconds an epoch
        stage_left = pace * ((trainer.max_epochs or 0) - done)
        self.progress.update(
            self.task,
            completed=done,
            description=f"{self.stage.name[:18]} {trainer.current_epoch + 1}/{trainer.max_epochs}",
            now=f"loss {self.loss}  val acc {self.accuracy}  {self.throughput.rate:.0f} img/s  "
            f"left {_clock(stage_left)}, run {_clock(stage_left + pace * self.epochs_after)}",
            refresh=True,
        )

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
            for handler, stream in self.streams.items():
                handler.setStream(stream)


def _batches(trainer: Trainer) -> float:
    """Of an epoch: train's and val's."""
    return trainer.num_training_batches + sum(trainer.num_val_batches)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
