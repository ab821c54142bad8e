"""How far BatchNorm statistics have moved from the pretrained ones, and what that does."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from tlx.models.classifier import Classifier
from tlx.models.outputs import sample_losses
from tlx.training.module import Batch
from tlx.training.scalars import Scalars

log = logging.getLogger(__name__)

Statistics = Mapping[str, tuple[Tensor, Tensor]]  # BatchNorm's path → running mean, variance


@dataclass(frozen=True)
class Drift:
    """Of one block: 0 and 0 where nothing moved."""

    mean: float
    scale: float


def statistics(classifier: Classifier) -> Statistics:
    """Copies of the running statistics of every BatchNorm, on the CPU."""
    return {
        path: (
            module.running_mean.detach().cpu().clone(),
            module.running_var.detach().cpu().clone(),
        )
        for path, module in _batchnorms(classifier)
        if module.running_mean is not None and module.running_var is not None
    }


def drift(classifier: Classifier, reference: Statistics) -> dict[str, Drift]:
    """Of each block with BatchNorm, against the `reference`, over all its channels.

    mean:  the root mean square of (mean - mean₀) / √(var₀ + eps)
    scale: the root mean square of ½ ln((var + eps) / (var₀ + eps))

    Both are free of the features' scale: the first is the shift of what BatchNorm puts out
    before its own weight and bias, the second the logarithm of the factor on it.
    """
    shifts: dict[str, list[Tensor]] = {}
    factors: dict[str, list[Tensor]] = {}
    eps = {path: module.eps for path, module in _batchnorms(classifier)}
    for path, (mean, var) in statistics(classifier).items():
        block = path.partition(".")[0]
        first_mean, first_var = reference[path]
        spread = first_var.double() + eps[path]
        shift = (mean.double() - first_mean.double()) / spread.sqrt()
        factor = ((var.double() + eps[path]) / spread).log() / 2
        shifts.setdefault(block, []).append(shift)
        factors.setdefault(block, []).append(factor)
    return {block: Drift(_rms(shifts[block]), _rms(factors[block])) for block in shifts}


def _batchnorms(classifier: Classifier) -> Iterator[tuple[str, _BatchNorm]]:
    for name, group in classifier.groups.items():
        for path, module in group.named_modules(prefix=name):
            if isinstance(module, _BatchNorm):
                yield path, module


def _rms(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).square().mean().sqrt())


def acts_differently(module: nn.Module) -> bool:
    """Whether `module`, in the mode it is in, computes something else than in evaluation."""
    return any(
        m.training
        and (
            isinstance(m, _BatchNorm) or (isinstance(m, (_DropoutNd, StochasticDepth)) and m.p > 0)
        )
        for m in module.modules()
    )


def mode_gap(module: LightningModule, batch: Batch) -> float:
    """The batch's mean loss in the modes `module` is in, minus the one in evaluation mode.

    Weights, buffers, modes and random number generators are afterwards as they were before.
    """
    if not acts_differently(module):
        return 0.0
    inputs, labels, _ = batch
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        as_trained = _loss(module, inputs, labels)
        with _evaluating(module):
            return as_trained - _loss(module, inputs, labels)


def _loss(module: LightningModule, inputs: Tensor, labels: Tensor) -> float:
    """On copies of the buffers, which BatchNorm changes in training mode."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    logits: Tensor = functional_call(module, buffers, (inputs,))
    return float(sample_losses(logits, labels).mean())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


class BatchNormDrift(Callback):
    """After each epoch: the drift of every block, and the gap on the epoch's first batch.

    Every process takes part, because synchronised BatchNorm needs all of them; the one that is
    given `scalars` writes.
    """

    def __init__(
        self, classifier: Classifier, pretrained: Statistics, scalars: Scalars | None
    ) -> None:
        self.classifier = classifier
        self.pretrained = pretrained
        self.scalars = scalars
        self.batch: Batch | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batch = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        if self.batch is None:
            self.batch = batch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with trainer.precision_plugin.forward_context():
            gap = mode_gap(pl_module, self.batch) if self.batch is not None else 0.0
        self.batch = None
        if self.scalars is None:
            return
        drifts = drift(self.classifier, self.pretrained)
        step = self.scalars.first_step + trainer.global_step
        writer = self.scalars.writer
        writer.add_scalar("mode_gap/loss", gap, step)
        for block, moved in drifts.items():
            writer.add_scalar(f"batchnorm_drift_mean/{block}", moved.mean, step)
            writer.add_scalar(f"batchnorm_drift_scale/{block}", moved.scale, step)
        writer.flush()
        _log(drifts, gap)


def _log(drifts: Mapping[str, Drift], gap: float) -> None:
    moved = [block for block, found in drifts.items() if found != Drift(0.0, 0.0)]
    if moved:
        mean = max(moved, key=lambda block: drifts[block].mean)
        scale = max(moved, key=lambda block: drifts[block].scale)
        log.info(
            "BatchNorm's statistics moved in %d of %d blocks: mean by %.3f (most, %s), "
            "scale by %.3f (%s). Loss in train mode less eval mode: %+.4f.",
            len(moved), len(drifts), drifts[mean].mean, mean, drifts[scale].scale, scale, gap,
        )  # fmt: skip
