"""The LightningModule of one stage."""

import math
import time
import zlib
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tlx.errors import UserError
from tlx.models.backbones import Place
from tlx.models.classifier import Classifier
from tlx.models.outputs import predicted, sample_losses, target_classes
from tlx.models.preprocess import Preprocess
from tlx.specs import StageSpec
from tlx.training.features import digest
from tlx.training.optim import build_optimizer, build_scheduler

Batch = tuple[
    Tensor, Tensor, Tensor
]  # images (B, 3, H, W) uint8, targets as `sample_losses` takes them, positions (B,)


class StageModule(LightningModule):
    """Trains `classifier` through one stage; metrics are exact sums over samples and ranks.

    train/loss is the mean of what is minimised: of losses times the samples' weights, against
    targets that may be smoothed or mixed, of which train/accuracy takes the likeliest class.
    """

    def __init__(  # noqa: PLR0913 — three of them by name
        self,
        classifier: Classifier,
        preprocess: Preprocess,
        stage: StageSpec,
        *,
        seed: int,
        start: Place | None = None,
        compiled: bool = False,
    ) -> None:
        """`start`: where the data come in; None for images.

        `compiled`: by torch.compile, in steps of training and validation alone; the classifier
        itself stays as it is.
        """
        super().__init__()
        self.classifier = classifier
        self.preprocess = preprocess
        self.stage = stage
        self.seed = seed
        self.start = start
        self.channels_last = classifier.backbone.is_convolutional
        self.weights: Tensor | None = None  # of the training images, in the manifest's order
        # a function, not a module: the names in a checkpoint stay the same
        self._compiled = None
        if compiled:
            torch.compiler.reset()  # else the stages' graphs together are too many for it
            self._compiled = torch.compile(classifier.forward)
        self._share = 1.0  # of the batch in its step, where 1 is what Lightning gives each
        self.step_ended = 0.0  # on time.perf_counter's clock, after what callbacks did
        self._train_seen: list[Tensor] = []
        self._val_seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, outputs) of uint8 images (B, 3, H, W), or of features before `start`."""
        return self.classifier(self._prepared(inputs), self.start or 0)  # type: ignore[no-any-return]

    def _prepared(self, inputs: Tensor) -> Tensor:
        if self.start is None:
            inputs = self.preprocess.normalize(inputs)
        if self.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def _logits(self, inputs: Tensor) -> Tensor:
        if self._compiled is None:
            return self(inputs)  # type: ignore[no-any-return]
        return self._compiled(self._prepared(inputs), self.start or 0)

    def on_fit_start(self) -> None:
        trainer: Any = self.trainer
        self.weigh(trainer.datamodule.weights)

    def weigh(self, weights: Tensor | None) -> None:
        """Count each training image so much; None: all the same."""
        self.weights = weights if weights is None else weights.to(self.device)

    def train_losses(self, logits: Tensor, targets: Tensor, positions: Tensor) -> Tensor:
        """(B,): the losses times the weights, whose mean is minimised.

        A mixed image has its own weight, not its partner's.
        """
        losses = sample_losses(logits, targets)
        return losses if self.weights is None else losses * self.weights[positions]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout draws from (seed, stage, epoch, step), not from what ran before."""
        place = f"{self.seed}/{self.stage.name}/{self.current_epoch}/{batch_idx}/{self.global_rank}"
        number = zlib.crc32(place.encode())
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)
        elif self.device.type == "mps":
            torch.mps.manual_seed(number)

    def on_train_batch_end(self, *args: Any) -> None:
        self.step_ended = time.perf_counter()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning refuses bf16 with a fused optimizer, for the sake of a GradScaler, which the
        CPU does without."""
        if self.device.type != "cpu":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            clip_grad_norm_(parameters, gradient_clip_val)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets, positions = batch
        logits = self._logits(inputs)
        losses = self.train_losses(logits, targets, positions)
        self._train_seen.append(_outcome(logits, losses, targets))
        self._share = self._share_of(batch_idx, len(losses))
        return losses.mean()

    def _share_of(self, batch_idx: int, images: int) -> float:
        trainer: Any = self.trainer
        together: int = trainer.accumulate_grad_batches
        if together == 1:
            return 1.0
        first = batch_idx // together * together
        last = min(first + together, self._batches())
        of_step: int = trainer.datamodule.images_in(first, last)
        return together * images / of_step

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """A step's gradient is the mean over its images, also where `trainer.accumulate` batches
        are not full or not all there, by whose number Lightning has divided. The loss that is
        logged stays the batch's."""
        super().backward(loss * self._share, *args, **kwargs)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, labels, _ = batch
        logits = self._logits(inputs)
        self._val_seen.append(_outcome(logits, sample_losses(logits, labels), labels))

    def on_validation_epoch_end(self) -> None:
        """Val follows each epoch's last step; callbacks' `on_train_epoch_end` then has both."""
        self._log("train", self._train_seen)
        self._log("val", self._val_seen)

    def _log(self, split: str, seen: list[Tensor]) -> None:
        """Mean loss and accuracy of the epoch, added up in the same order on every rank."""
        outcomes = torch.cat([rows.cpu() for rows in seen])
        seen.clear()
        if self.trainer.world_size > 1:
            outcomes = _gather(outcomes, self.trainer.world_size)
        loss, accuracy = outcomes.double().sort(dim=0).values.mean(dim=0)
        self.log_dict(
            {f"{split}/loss": loss.float(), f"{split}/accuracy": accuracy.float()},
            prog_bar=True,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What the running epoch has seen, so that its mean is whole after a resume.

        Frozen parameters are left out: a stage begins with them whenever it begins.
        """
        frozen = self._frozen()
        checkpoint["state_dict"] = {
            name: tensor for name, tensor in checkpoint["state_dict"].items() if name not in frozen
        }
        checkpoint["frozen"] = self._frozen_digest
        seen = torch.cat([torch.empty(0, 2), *(rows.cpu() for rows in self._train_seen)])
        if self.trainer.world_size > 1:
            seen = _gather(seen, self.trainer.world_size)
        checkpoint["train_seen"] = seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("frozen") != self._frozen_digest:
            raise UserError(
                f"stage {self.stage.name} cannot go on: its frozen weights are not those it began "
                "with. The weights' file or the version of torch is another; restore it, or train "
                "anew in another folder."
            )
        checkpoint["state_dict"] |= self._frozen()
        seen = checkpoint["train_seen"]
        self._train_seen = [seen] if len(seen) and self.global_rank == 0 else []

    def _frozen(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named_parameters() if not p.requires_grad}

    @cached_property
    def _frozen_digest(self) -> str:
        """Statistics that do not move among them: a checkpoint has these, but so have features."""
        still = (m for m in self.modules() if isinstance(m, _BatchNorm) and not m.training)
        buffers = {f"{i}.{name}": b for i, m in enumerate(still) for name, b in m.named_buffers()}
        return digest(self._frozen() | buffers)

    def _steps(self) -> int:
        """The optimizer's steps in the whole stage."""
        trainer: Any = self.trainer
        in_epoch = math.ceil(self._batches() / trainer.accumulate_grad_batches)
        return int(trainer.max_epochs * in_epoch)

    def _batches(self) -> int:
        """The batches of an epoch."""
        trainer: Any = self.trainer
        batches: int = trainer.datamodule.batches_per_epoch()
        if isinstance(trainer.limit_train_batches, int):
            batches = min(batches, trainer.limit_train_batches)
        return batches

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.stage, self.classifier)
        steps = self._steps()
        scheduler = build_scheduler(self.stage.scheduler, optimizer, steps)
        if isinstance(scheduler, ReduceLROnPlateau):
            # an "epoch" interval comes after the checkpoint, which then lacks it
            plan = {"scheduler": scheduler, "monitor": "val/loss"}
            plan |= {"interval": "step", "frequency": self._batches()}
        else:
            plan = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": plan}


def _outcome(logits: Tensor, losses: Tensor, targets: Tensor) -> Tensor:
    """(B, 2) float32 on the model's device: loss, 1 where the sample was right."""
    right = predicted(logits) == target_classes(targets)
    return torch.stack([losses.detach(), right.float()], dim=1)


def _gather(rows: Tensor, world_size: int) -> Tensor:
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, rows)
    return torch.cat(parts)
