"""Whether a few images can be told apart at all by what the network makes of them."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import Finding
from tlx.diagnosis.probe import Probe, probe_of
from tlx.models.outputs import sample_losses

ENOUGH = 0.5  # of the loss of guessing: what a head that fits the images is far below
ROUNDS = 60  # of L-BFGS
CONSTANT = 1e-6  # spread over the images, relative to the features' length


def one_batch(case: Case) -> Iterator[Finding]:
    """The head, without dropout, is fit to the probe's features as exactly as it can be."""
    probe, classifier = probe_of(case), case.job.model.classifier
    guessing = chance_loss(probe.labels)
    if probe.not_finite is not None or guessing == 0:
        return
    last = len(classifier.groups) - 1
    with torch.no_grad():
        features = classifier.head.pool(probe.features[last]).double()
        # As long as a new head expects: a network from scratch, with BatchNorm as it begins, gives
        # features of any length in evaluation mode.
        features = features / features.square().mean().sqrt().clamp(min=1e-300)
    loss = fit(classifier.head.layers, features, probe.labels)
    if loss <= ENOUGH * guessing:
        return
    spread = _spread(features)
    why = _why(features, spread, probe)
    yield Finding(
        "cannot_fit", "error",
        f"{len(features)} training images, and the head alone, fit to them as exactly as it can "
        f"be, has a loss of {loss:.3f}; guessing has {guessing:.3f}. {why}",
        "python -m tlx.check shows copies and labels; head.hidden=[256] gives the head more",
        {"images": len(features), "loss": loss, "guessing": guessing, "spread": spread},
    )  # fmt: skip


def chance_loss(labels: Tensor) -> float:
    """Of knowing nothing but how frequent the classes are: the entropy, in nats."""
    shares = labels.bincount().double() / len(labels)
    return float(-(shares * shares.clamp(min=1e-300).log()).sum())


def fit(layers: nn.Module, features: Tensor, labels: Tensor) -> float:
    """The loss after L-BFGS, which no learning rate and no scale of the features can mislead."""
    head = copy.deepcopy(layers).double().eval().requires_grad_(True)
    if not list(head.parameters()):
        return float(sample_losses(head(features), labels).mean())
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=ROUNDS, line_search_fn="strong_wolfe", tolerance_change=0
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sample_losses(head(features), labels).mean()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        loss = float(sample_losses(head(features), labels).mean())
    return loss if math.isfinite(loss) else math.inf


def _spread(features: Tensor) -> float:
    return float((features - features.mean(dim=0)).norm() / features.norm().clamp(min=1e-300))


def _why(features: Tensor, spread: float, probe: Probe) -> str:
    if spread < CONSTANT:
        return f"The backbone gives the same features for every image (spread {spread:.1g})."
    same = torch.cdist(features.flatten(1), features.flatten(1)) < CONSTANT * features[0].norm()
    contradicting = same & (probe.labels[:, None] != probe.labels)
    if contradicting.any():
        pairs = int(contradicting.sum()) // 2
        return f"{pairs} pairs of images have the same features and different labels."
    return f"The features differ (spread {spread:.2g}), so the head itself cannot use them."
