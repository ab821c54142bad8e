"""What a stage leaves on disk: its newest state, its best weights, and how it ended."""

import logging
import math
import pickle
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from tlx.files import replace_atomically
from tlx.models.classifier import Classifier
from tlx.models.folder import save_weights
from tlx.specs import StageSpec
from tlx.training.averaging import WeightAverage

# Ctrl-C, a scheduler's request to end, and Slurm's warning before it
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

TOGETHER = 10  # steps after which several processes ask each other for signals: GPUs wait for it

log = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818  # not an error
    """Training was told to stop; its state is in `last.ckpt`, or it has not begun."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # the shell's own convention


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` every epoch and `weights.safetensors`, what the stage hands over.

    Those are the weights of the best epoch on val, or of the last one. The stage ends when val
    has not improved for `patience` epochs; on a signal it stops after the running step, with its
    state on disk, and `Interrupted` is raised.
    """

    def __init__(  # noqa: PLR0913  # four by name
        self,
        folder: Path,
        classifier: Classifier,
        *,
        monitor: str,
        stage: StageSpec,
        every: int | None,
        average: WeightAverage | None = None,
    ) -> None:
        """`every`: steps after which `last.ckpt` is written within an epoch, too."""
        super().__init__()
        self.folder = folder
        self.classifier = classifier
        self.monitor = f"val/{monitor}"
        self.sign = -1.0 if monitor == "loss" else 1.0
        self.patience = stage.patience
        self.hand_over = stage.hand_over
        self.every = every
        self.average = average  # what val saw in place of the classifier's weights
        self.best: tuple[float, float] | None = None  # the score and, between equals, minus loss
        self.best_epoch = 0  # counted from 1
        self.interrupted_by: int | None = None
        self.began = time.monotonic()
        self.earlier = 0.0  # seconds that interrupted processes have trained the stage

    def state_dict(self) -> dict[str, Any]:
        seconds = self.earlier + time.monotonic() - self.began
        return {
            "best": list(self.best or ()), "best_epoch": self.best_epoch, "seconds": seconds
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = tuple(state_dict["best"]) or None
        self.best_epoch = state_dict["best_epoch"]
        self.earlier = state_dict["seconds"]

    @property
    def score(self) -> float:
        """The best epoch's accuracy, or its loss where that is monitored."""
        return self.sign * self.best[0] if self.best else float("nan")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in STOP_SIGNALS:  # here, because Lightning has set handlers of its own by now
            signal.signal(number, self._stop_soon)
        self._stop_if_patience_is_over(trainer, trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # the epoch's end, after val, is next: Lightning resumes from there
        if trainer.fit_loop._should_accumulate():
            return  # gradients are in no checkpoint: the step to which they belong is next
        asked = trainer.world_size == 1 or trainer.global_step % TOGETHER == 0
        interrupted = asked and self._is_interrupted(trainer)
        if interrupted or (self.every is not None and trainer.global_step % self.every == 0):
            self.save_last(trainer)
        if interrupted:
            raise Interrupted(self.interrupted_by or signal.SIGTERM)

    def _stop_soon(self, number: int, frame: Any) -> None:
        """Let the running step end; a second Ctrl-C ends at once."""
        self.interrupted_by = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log.warning("%s: stopping after this step…", signal.Signals(number).name)

    def _is_interrupted(self, trainer: Trainer) -> bool:
        """Whether any process got a signal: all of them stop at the same step."""
        mine = self.interrupted_by is not None
        if trainer.world_size == 1:
            return mine
        return trainer.strategy.reduce_boolean_decision(mine, all=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        metrics = trainer.callback_metrics
        score = self.sign * float(metrics[self.monitor]), -float(metrics["val/loss"])
        # nothing is above NaN, with which a first epoch may have begun; nor is it the best by the
        # accuracy that one class for all images has
        was_lost = self.best is not None and math.isnan(self.best[1])
        is_lost = math.isnan(score[1])
        improved = self.best is None or (not is_lost and (was_lost or score > self.best))
        if improved:
            self.best, self.best_epoch = score, epoch
        if trainer.is_global_zero and (improved or self.hand_over == "last"):
            with self.average.applied() if self.average else nullcontext():
                save_weights(self.folder / "weights.safetensors", self.classifier)
        self._stop_if_patience_is_over(trainer, epoch)
        self.save_last(trainer)
        if self._is_interrupted(trainer):
            raise Interrupted(self.interrupted_by or signal.SIGTERM)

    def _stop_if_patience_is_over(self, trainer: Trainer, epochs: int) -> None:
        if self.patience is not None and epochs - self.best_epoch >= self.patience:
            trainer.should_stop = True

    def save_last(self, trainer: Trainer) -> None:
        """All processes take part; the first one writes. The one before stays, as previous.ckpt."""
        last = self.folder / "last.ckpt"
        if trainer.is_global_zero:
            with replace_atomically(last) as temporary:
                trainer.save_checkpoint(temporary)
                if last.exists():
                    last.replace(self.folder / "previous.ckpt")
        else:
            trainer.save_checkpoint(last)
        # until the file has its name: Lightning kills the first process when another one ends
        trainer.strategy.barrier()


def resume_point(folder: Path) -> Path | None:
    """The newest whole checkpoint of a begun stage."""
    for path in (folder / "last.ckpt", folder / "previous.ckpt"):
        if path.exists():
            try:
                torch.load(path, map_location="meta", weights_only=True)
            except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
                log.warning("%s is damaged (%s): going on from the one before", path, error)
            else:
                return path
    return None
