"""The first steps of each stage, on a copy: how long its gradients and its updates are."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import Finding
from tlx.diagnosis.probe import CHUNK, probe_of
from tlx.diagnosis.trial import config_key, trial
from tlx.models.classifier import HEAD, Classifier
from tlx.models.outputs import sample_losses
from tlx.specs import StageSpec

STEPS = {True: 10, False: 3}  # where only the head learns, and where blocks do
REPLACED = 1.0  # of the weights' length: an update that leaves nothing of them
LARGE = 0.1  # one that can be right while the loss falls
STILL = 0.05  # of the loss: a fall over a whole stage that is none
LEAST_STEPS = 100  # a stage of less is short, not slow
VANISHED, EXPLODED = 1e-7, 1e3  # the gradient's length in the weights' lengths

Groups = Mapping[str, list[nn.Parameter]]  # the layer groups that learn


@dataclass(frozen=True)
class Steps:
    """Of the layer groups that learn, relative to the weights before the first step.

    `fall` is by how much the loss would fall per step, were it a plane.
    """

    losses: tuple[float, ...]
    gradients: Mapping[str, float]  # of the first step
    updates: Mapping[str, float]  # of the last
    fall: float


def first_steps(case: Case) -> Iterator[Finding]:
    """Of stages with the same optimizer the one that is cheapest to try stands for the others."""
    probe = probe_of(case)
    if probe.not_finite is not None:
        return
    classifier, tried = case.job.model.classifier, set()
    for stage in case.job.config.stages:
        kind = repr((stage.optimizer, stage.lr_decay, stage.train_from == HEAD))
        if kind in tried:
            continue
        tried.add(kind)
        start = classifier.locate(stage.train_from)
        only_head = start == len(classifier.groups) - 1
        count = len(probe.labels) if only_head else CHUNK
        taken = take_steps(case, stage, start=start, images=count, count=STEPS[only_head])
        if taken is not None:
            yield from judge(case, stage, taken)


def take_steps(
    case: Case, stage: StageSpec, *, start: int, images: int, count: int
) -> Steps | None:
    """With the stage's own optimizer at its full rate; None where nothing learns."""
    probe = probe_of(case)
    inputs, labels = probe.features[start][:images], probe.labels[:images]
    losses, fall = list[float](), 0.0
    gradients: dict[str, float] = {}
    updates: dict[str, float] = {}
    with trial(case.job.model.classifier, stage) as classifier, torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.job.config.seed)
        groups = _learning(classifier)
        if not groups:
            return None
        optimizer = case.optimizer(stage, classifier)
        if not any(group["lr"] for group in optimizer.param_groups):
            return None
        lengths = {name: _length(parameters) for name, parameters in groups.items()}
        for step in range(count + 1):
            loss = sample_losses(classifier(inputs.clone(), start), labels).mean()
            losses.append(float(loss.detach()))
            if step == count or not math.isfinite(losses[-1]) or not loss.requires_grad:
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if step == 0:
                gradients = {n: _norm([p.grad for p in own if p.grad is not None]) / lengths[n]
                             for n, own in groups.items()}  # fmt: skip
            shrunk = _clip(groups, case.job.config.trainer.clip)
            moved, descent = _step(optimizer, groups)
            updates = {name: length / lengths[name] for name, length in moved.items()}
            fall = max(fall, descent / shrunk)
    momentum = float(stage.optimizer.settings.get("momentum") or 0)
    return Steps(tuple(losses), gradients, updates, fall / (1 - momentum))


def _learning(classifier: Classifier) -> Groups:
    groups = {name: [p for p in group.parameters() if p.requires_grad]
              for name, group in classifier.groups.items()}  # fmt: skip
    return {name: parameters for name, parameters in groups.items() if parameters}


def _clip(groups: Groups, clip: float | None) -> float:
    """By which factor the gradient has become shorter."""
    if clip is None:
        return 1.0
    every = [p for own in groups.values() for p in own]
    length = float(nn.utils.clip_grad_norm_(every, clip))
    return min(1.0, clip / (length + 1e-6))


def _step(optimizer: Optimizer, groups: Groups) -> tuple[dict[str, float], float]:
    """How far each layer group has moved, and how far along its gradients downwards."""
    before = {n: [p.detach().clone() for p in own] for n, own in groups.items()}
    optimizer.step()
    moved, descent = {}, 0.0
    for name, own in groups.items():
        squares = 0.0
        for p, old in zip(own, before.pop(name), strict=True):
            move = p.detach() - old
            squares += float(move.square().sum())
            if p.grad is not None:
                descent -= float((move * p.grad).sum())
        moved[name] = math.sqrt(squares)
    return moved, descent


def _length(parameters: list[nn.Parameter]) -> float:
    """At least as if each were 0.001: some begin with 0."""
    numbers = sum(p.numel() for p in parameters)
    return max(_norm([p.detach() for p in parameters]), 1e-3 * math.sqrt(numbers))


def _norm(tensors: list[Tensor]) -> float:
    return float(nn.utils.get_total_norm(tensors))


def judge(case: Case, stage: StageSpec, steps: Steps) -> Iterator[Finding]:
    """Gradients first: where they are wrong no rate is right."""
    sick = list(_gradients(stage, steps))
    yield from sick or _rate(case, stage, steps)


def _gradients(stage: StageSpec, steps: Steps) -> Iterator[Finding]:
    lowest = min(steps.gradients, key=lambda n: steps.gradients[n], default=None)
    highest = max(steps.gradients, key=lambda n: steps.gradients[n], default=None)
    key = config_key(stage)
    numbers = {f"gradient_{n}": value for n, value in steps.gradients.items()}
    if highest is None or lowest is None or steps.gradients[highest] == 0:
        yield Finding(
            "nothing_trains", "error",
            f"stage {stage.name}: no gradient reaches any parameter that should learn: the loss "
            "does not depend on them",
            "let no detach, no_grad or constant stand between the head and the loss", numbers,
        )  # fmt: skip
    elif bad := [n for n, value in steps.gradients.items() if not math.isfinite(value)]:
        yield Finding(
            "not_finite", "error",
            f"stage {stage.name}: the loss is {steps.losses[0]:.3g}, but the gradient of {bad[-1]} "
            "is NaN or infinite",
            "trainer.precision=32", numbers,
        )  # fmt: skip
    elif steps.gradients[highest] > EXPLODED:
        yield Finding(
            "gradients", "error",
            f"stage {stage.name}: the gradient of {highest} is {steps.gradients[highest]:.2g} "
            f"times as long as its weights; up to 100 is usual. The loss is {steps.losses[0]:.3g}",
            "trainer.clip=1", numbers,
        )  # fmt: skip
    elif steps.gradients[lowest] < VANISHED:
        yield Finding(
            "gradients", "error",
            f"stage {stage.name}: the gradient of {lowest} is {steps.gradients[lowest]:.2g} of its "
            f"weights' length, that of {highest} {steps.gradients[highest]:.2g}: it vanishes on "
            "the way back",
            f"{key}.train_from=head; or head.activation=relu", numbers,
        )  # fmt: skip


def _rate(case: Case, stage: StageSpec, steps: Steps) -> Iterator[Finding]:
    if stage.find_lr or not steps.updates:
        return
    group, update = max(steps.updates.items(), key=lambda item: item[1])
    first, last = steps.losses[0], steps.losses[-1]
    rises = not math.isfinite(last) or last > 2 * first
    total = _planned_steps(case, stage)
    fall = steps.fall * max(total, LEAST_STEPS) / first
    numbers = {"update": update, "first_loss": first, "last_loss": last,
               "steps": total, "reachable_fall": fall}  # fmt: skip
    rate, key = stage.optimizer.lr, config_key(stage)
    if not math.isfinite(last) or update > REPLACED or (update > LARGE and rises):
        yield Finding(
            "learning_rate", "error",
            f"stage {stage.name}: at {rate:g} a step moves {group} by {update:.2g} of its weights' "
            f"length (usual is 0.0001 to 0.1), and the loss of the same images goes from "
            f"{first:.3g} to {last:.3g} in {len(steps.losses) - 1} steps: far too high",
            f"{key}.lr=find", numbers,
        )  # fmt: skip
    elif fall < STILL:
        yield Finding(
            "learning_rate", "error",
            f"stage {stage.name}: at {rate:g} a step moves {group} by {update:.2g} of its weights' "
            f"length, and {max(total, LEAST_STEPS)} steps lower the loss by at most "
            f"{fall:.2%}: far too low",
            f"{key}.lr=find", numbers,
        )  # fmt: skip


def _planned_steps(case: Case, stage: StageSpec) -> int:
    limits = case.job.config.trainer
    batches = min(case.data.batches_per_epoch(), limits.limit_train or math.inf)
    epochs = min(stage.epochs, limits.limit_epochs or stage.epochs)
    return epochs * math.ceil(batches / limits.accumulate)
