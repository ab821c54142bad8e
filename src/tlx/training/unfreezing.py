"""Which part of a classifier learns in a stage, and that the rest does not move by one bit."""

import logging
from collections.abc import Iterable
from dataclasses import replace

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tlx.errors import UserError
from tlx.models.classifier import Classifier
from tlx.specs import StageSpec

log = logging.getLogger(__name__)


def apply_stage(classifier: Classifier, stage: StageSpec) -> None:
    """Freeze everything before `stage.train_from`; let it and the rest learn.

    A pure function of the stage: whatever was set before is set anew. What is frozen computes the
    same function in training and evaluation (BatchNorm on running statistics, dropout off),
    unless `stage.batchnorm` says otherwise.
    """
    for path, module, learns in classifier.modules_from(stage.train_from):
        module.training = learns
        adapts = learns
        if isinstance(module, _BatchNorm):
            policy = stage.batchnorm_learning if learns else stage.batchnorm
            module.training, adapts = policy != "frozen", policy == "trainable"
            momentum = stage.batchnorm_momentum
            module.momentum = classifier.batchnorm_momenta[path] if momentum is None else momentum
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(adapts)


def plain_stages(classifier: Classifier, stages: Iterable[StageSpec]) -> tuple[StageSpec, ...]:
    """The stages as they are trained: a gradual one as several, one block more in each.

    From the top block down to `train_from`, each called NAME-BLOCK. Raises UserError when two
    stages come to the same name.
    """
    plain = [step for stage in stages for step in _steps(classifier, stage)]
    names = [stage.name for stage in plain]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two stages are called {name}; give one of them another name.")
    return tuple(plain)


def _steps(classifier: Classifier, stage: StageSpec) -> list[StageSpec]:
    if not stage.gradual:
        return [stage]
    last = classifier.boundary(stage.train_from)
    above = [name for name in classifier.weighted_blocks if classifier.locate(name) > last.group]
    return [
        replace(stage, name=f"{stage.name}-{path}", train_from=path, gradual=False)
        for path in [*reversed(above), last.path]
    ]


def check_refreezing(classifier: Classifier, stages: Iterable[StageSpec]) -> None:
    """Raise when a stage freezes parameters that a stage before it trained."""
    trained: dict[str, str] = {}  # parameter → the last stage that trained it
    for stage in stages:
        apply_stage(classifier, stage)
        learning = [name for name, p in classifier.named_parameters() if p.requires_grad]
        if lost := [name for name in trained if name not in learning]:
            raise UserError(
                f"stage {stage.name} (train_from={stage.train_from}) freezes again "
                f"{len(lost)} tensors that stage {trained[lost[0]]} trained, from "
                f"{lost[0].removeprefix('backbone.blocks.')} on. Let it train them too, or set "
                "allow_refreeze=true."
            )
        trained |= dict.fromkeys(learning, stage.name)


def has_batchnorm(module: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) for m in module.modules())


class StagedUnfreezing(Callback):
    """Applies the stage before the strategy wraps the model, and holds it true every epoch."""

    def __init__(self, classifier: Classifier, stage: StageSpec) -> None:
        self.classifier = classifier
        self.stage = stage

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        apply_stage(self.classifier, self.stage)
        if trainer.is_global_zero:
            self._warn_of_no_effect()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        apply_stage(self.classifier, self.stage)

    def _warn_of_no_effect(self) -> None:
        stage = self.stage
        settings = [
            ("batchnorm", stage.batchnorm, "frozen"),
            ("batchnorm_learning", stage.batchnorm_learning, "trainable"),
            ("batchnorm_momentum", stage.batchnorm_momentum, None),
        ]
        changed = [f"{key}={value}" for key, value, default in settings if value != default]
        if changed and not has_batchnorm(self.classifier):
            log.warning(
                "stage.%s: %s has no effect: %s has no BatchNorm.",
                stage.name,
                ", ".join(changed),
                self.classifier.backbone.name,
            )
