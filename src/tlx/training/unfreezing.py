"""Which part of a classifier learns in a stage, and that the rest does not move by one bit."""

import warnings

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tlx.config import StageSpec
from tlx.models.classifier import Classifier


def apply_stage(classifier: Classifier, stage: StageSpec) -> None:
    """Freeze every layer group before `stage.train_from`; let the others learn.

    A pure function of the stage: whatever was set before is set anew. Frozen groups compute the
    same function in training and evaluation (BatchNorm on running statistics, dropout off),
    unless `stage.batchnorm` says otherwise.
    """
    first = classifier.locate(stage.train_from)
    for index, group in enumerate(classifier.groups.values()):
        learns = index >= first
        group.train(learns).requires_grad_(learns)
        policy = stage.batchnorm_learning if learns else stage.batchnorm
        for module in group.modules():
            if isinstance(module, _BatchNorm):
                module.train(policy != "frozen")
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(policy == "trainable")


def has_batchnorm(module: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) for m in module.modules())


class StagedUnfreezing(Callback):
    """Applies the stage before the strategy wraps the model, and holds it true every epoch."""

    def __init__(self, classifier: Classifier, stage: StageSpec) -> None:
        self.classifier = classifier
        self.stage = stage

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        apply_stage(self.classifier, self.stage)
        if self.stage.batchnorm != "frozen" and not has_batchnorm(self.classifier.backbone):
            name = self.classifier.backbone.name
            warnings.warn(
                f"stage.{self.stage.name}.batchnorm={self.stage.batchnorm} has no effect: "
                f"{name} has no BatchNorm.",
                stacklevel=2,
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        apply_stage(self.classifier, self.stage)
