"""Trying a network out without changing it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.modules.batchnorm import _BatchNorm

from tlx.models.classifier import Classifier
from tlx.specs import StageSpec
from tlx.training.unfreezing import apply_stage


@contextmanager
def unchanged(classifier: Classifier) -> Iterator[None]:
    """Whatever mode its modules are put into, and whatever learns: it was for the time being."""
    modes = {module: module.training for module in classifier.modules()}
    learning = {parameter: parameter.requires_grad for parameter in classifier.parameters()}
    momenta = {module: module.momentum for module in modes if isinstance(module, _BatchNorm)}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, learns in learning.items():
            parameter.requires_grad_(learns)
        for norm, momentum in momenta.items():
            norm.momentum = momentum


@contextmanager
def trial(classifier: Classifier, stage: StageSpec) -> Iterator[Classifier]:
    """A copy to train as the stage does; only frozen parameters are the original's own."""
    with unchanged(classifier):
        apply_stage(classifier, stage)
        shared = {id(p): p for p in classifier.parameters() if not p.requires_grad}
        yield copy.deepcopy(classifier, shared)


def lower_rate(stage: StageSpec) -> str:
    """An override for a tenth of the stage's rate."""
    return f"{config_key(stage)}.lr={stage.optimizer.lr / 10:g}"


def config_key(stage: StageSpec) -> str:
    """Where the stage stands in the configuration: a gradual one is called NAME-BLOCK."""
    return f"stage.{stage.name.removesuffix(f'-{stage.train_from}')}"
