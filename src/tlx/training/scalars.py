"""What a stage writes for TensorBoard while it trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.tensorboard import SummaryWriter

from tlx.models.classifier import Classifier
from tlx.specs import StageSpec
from tlx.training.norms import group_norms
from tlx.training.optim import layer_group_rates
from tlx.training.throughput import Throughput

# the tab "Custom scalars": a chart takes every tag that one of its patterns matches from the start
LAYOUT = {
    "train and val": {
        "loss": ["Multiline", ["train/loss$", "val/loss$"]],
        "accuracy": ["Multiline", ["train/accuracy$", "val/accuracy$"]],
    },
    "layer groups": {
        "learning rate": ["Multiline", ["lr/"]],
        "gradient norm": ["Multiline", ["gradient_norm/"]],
        "weight norm": ["Multiline", ["weight_norm/"]],
    },
}


class Scalars(Callback):
    """Loss, accuracy, rates, norms and speed, on a step axis that runs on across stages.

    A value at step n belongs to the n-th of the optimizer's steps: the norms are of the gradient
    (before clipping) and of the weights that go into it. They are taken every `every` steps.
    """

    def __init__(
        self,
        folder: Path,
        classifier: Classifier,
        stage: StageSpec,
        *,
        first_step: int,
        every: int = 10,
    ) -> None:
        self.folder = folder
        self.classifier = classifier
        self.stage = stage
        self.first_step = first_step
        self.every = every
        self.written = 0  # the stage's step that was last written
        self.rates: dict[str, float] = {}  # of the last step that is written
        self.throughput = Throughput()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the stage's beginning; on a resume, purge what was logged beyond this step."""
        step = self.first_step + trainer.global_step
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step > 0 else 0)
        self.written = trainer.global_step
        self.throughput.begin()  # on a resume within an epoch that epoch does not start
        if trainer.global_step > 0:
            return
        if step == 0:
            self._describe_run()
        trainable = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        start = self.stage.train_from
        note = f"**{self.stage.name}** learns from `{start}` on: {trainable:,} parameters"
        self.writer.add_text("stage", note, step)
        self.writer.add_scalar("stage/trainable_parameters", trainable, step)

    def _describe_run(self) -> None:
        self.writer.add_custom_scalars(LAYOUT)
        config = self.folder / ".hydra" / "config.yaml"
        if config.is_file():
            self.writer.add_text("config", f"```yaml\n{config.read_text('utf-8')}\n```", 0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.throughput.begin()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.throughput.batch_arrived(pl_module.step_ended)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if is_last or (trainer.global_step + 1) % self.every == 0:
            self.rates = _rates(trainer)  # here, before the scheduler sets the next step's
        if trainer.global_step % self.every == 0:
            step = self.first_step + trainer.global_step + 1
            self._write(group_norms(self.classifier.groups), step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        self.throughput.batch_done(len(batch[0]) * trainer.world_size)
        if trainer.global_step % self.every == 0 and trainer.global_step > self.written:
            self.written = trainer.global_step
            step = self.first_step + trainer.global_step
            self.writer.add_scalar("train/loss_step", outputs["loss"].item(), step)
            self._write(self.throughput.read(), step)
            self._write(self.rates, step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = self.first_step + trainer.global_step
        for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
            self.writer.add_scalar(name, trainer.callback_metrics[name].item(), step)
        self._write(self.throughput.read(), step)
        if self.written < trainer.global_step:
            self._write(self.rates, step)
        self.writer.flush()

    def on_save_checkpoint(self, *args: Any) -> None:
        """A run that is killed later goes on from here: what led here must be on disk."""
        self.writer.flush()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if hasattr(self, "writer"):
            self.writer.close()

    def _write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


def _rates(trainer: Trainer) -> dict[str, float]:
    rates = layer_group_rates(trainer.optimizers[0])
    return {f"lr/{name}": rate for name, rate in rates.items()}
