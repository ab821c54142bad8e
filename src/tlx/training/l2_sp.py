"""L2-SP: weights decay toward where they started from, the pretrained network, instead of zero."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from tlx.models.classifier import Classifier
from tlx.training.optim import is_decayed


def pretrained_weights(classifier: Classifier) -> dict[str, Tensor]:
    """Copies of the backbone's parameters that decay, by their names in it."""
    return {
        name: parameter.detach().clone()
        for name, parameter in classifier.backbone.named_parameters()
        if is_decayed(name, parameter)
    }


class TowardPretrained(Callback):
    """Adds `strength` × (w - w₀) to the gradient of every backbone weight w that learns.

    It is the gradient of `strength` / 2 × ‖w - w₀‖² (Li, Grandvalet & Davoine 2018, eq. 4), as if
    that were part of the loss: it is there once a step, before clipping, and Adam scales it with
    the rest. Norms and biases are free; the head has the optimizer's own weight decay.
    """

    def __init__(
        self, classifier: Classifier, pretrained: Mapping[str, Tensor], strength: float
    ) -> None:
        self.classifier = classifier
        self.pretrained = pretrained
        self.strength = strength

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What learns, to where it learns: once, not in each step."""
        weights = dict(self.classifier.backbone.named_parameters())
        self.pretrained = {
            name: origin.to(weights[name].device)
            for name, origin in self.pretrained.items()
            if weights[name].requires_grad
        }

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, *args: Any
    ) -> None:
        weights = dict(self.classifier.backbone.named_parameters())
        with torch.no_grad():
            for name, origin in self.pretrained.items():
                weight = weights[name]
                if weight.grad is not None:
                    weight.grad.add_(weight - origin, alpha=self.strength)
