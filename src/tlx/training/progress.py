"""What a stage shows while it trains: TensorBoard scalars and a line per epoch."""

import logging
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.tensorboard import SummaryWriter

from tlx.config import StageSpec
from tlx.training.optim import layer_group_rates

log = logging.getLogger(__name__)


class Scalars(Callback):
    """Loss, accuracy and one rate per layer group, on a step axis that runs on across stages."""

    def __init__(self, folder: Path, stage: StageSpec, *, first_step: int, every: int = 10) -> None:
        self.folder = folder
        self.stage = stage
        self.first_step = first_step
        self.every = every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the stage's beginning; on a resume, purge what was logged beyond this step."""
        step = self.first_step + trainer.global_step
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1)
        if trainer.global_step > 0:
            return
        trainable = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        start = self.stage.train_from
        note = f"**{self.stage.name}** learns from `{start}` on: {trainable:,} parameters"
        self.writer.add_text("stage", note, step)
        self.writer.add_scalar("stage/trainable_parameters", trainable, step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        if trainer.global_step % self.every == 0:
            step = self.first_step + trainer.global_step
            self.writer.add_scalar("train/loss_step", outputs["loss"].item(), step)
            self._rates(trainer, step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = self.first_step + trainer.global_step
        for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
            self.writer.add_scalar(name, trainer.callback_metrics[name].item(), step)
        self._rates(trainer, step)
        self.writer.flush()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if hasattr(self, "writer"):
            self.writer.close()

    def _rates(self, trainer: Trainer, step: int) -> None:
        for name, rate in layer_group_rates(trainer.optimizers[0]).items():
            self.writer.add_scalar(f"lr/{name}", rate, step)


class EpochLines(Callback):
    """One log line per epoch, with the time it took."""

    def __init__(self, stage: StageSpec) -> None:
        self.stage = stage
        self.started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        log.info(
            "%s  epoch %d/%d  train loss %.4f accuracy %.4f  val loss %.4f accuracy %.4f  %.0f s",
            self.stage.name,
            trainer.current_epoch + 1,
            trainer.max_epochs,
            *(values[k] for k in ("train/loss", "train/accuracy", "val/loss", "val/accuracy")),
            time.monotonic() - self.started,
        )
