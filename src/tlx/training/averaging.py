"""Weight averaging: a stage is evaluated, and handed on, by the average of its recent weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tlx.models.classifier import Classifier


class WeightAverage(Callback):
    """An exponential moving average of what learns; training itself goes on without it.

    After the stage's n-th optimizer step, average += (1 - d) × (weights - average), where
    d = min(decay, (1 + n) / (10 + n)): short stages are not held to their first weights (the rule
    of TensorFlow's ExponentialMovingAverage). Running means and variances are averaged alike, so
    that they belong to the weights; integer buffers are the newest. Val is evaluated with the
    average in place; `applied` puts it in place for others. It is in the checkpoint, in this
    callback's state, while the checkpoint's own weights are those that training goes on from.

    Lightning's EMAWeightAveraging is not used: it computes d × a + (1 - d) × w, by which frozen
    weights drift in their last bits, and it takes the average out again before epochs end.
    """

    def __init__(self, classifier: Classifier, decay: float) -> None:
        self.classifier = classifier
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.step = 0
        self._live: dict[str, Tensor] = {}  # the classifier's own tensors, by name
        self._raw: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.step = state_dict["average"], state_dict["step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        learning = {k: p for k, p in self.classifier.named_parameters() if p.requires_grad}
        buffers = {k: b for k, b in self.classifier.named_buffers() if b.is_floating_point()}
        self._live = {**learning, **buffers}
        start = self.average or self._live
        self.average = {
            name: start[name].detach().to(tensor.device, copy=True)
            for name, tensor in self._live.items()
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if trainer.global_step == self.step:
            return  # a batch of an accumulated step
        self.step = trainer.global_step
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self._live.items():
                self.average[name].lerp_(tensor, 1 - decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:  # each process has seen other images' means and variances
            for tensor in self.average.values():
                torch.distributed.broadcast(tensor, 0)
        self._put_in()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.average, self._live = {}, {}  # a GPU's memory is for the next stage

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The classifier has the average inside, its own weights again after."""
        self._put_in()
        try:
            yield
        finally:
            self._put_back()

    def _put_in(self) -> None:
        self._raw = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._write(self.average)

    def _put_back(self) -> None:
        if self._raw is not None:
            self._write(self._raw)
            self._raw = None

    def _write(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._live.items():
                tensor.copy_(values[name])
