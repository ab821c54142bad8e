"""What a few images cause in the network: values, dead units, two modes, and can one fit them."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import Finding
from tlx.diagnosis.probe import Probe, probe_of
from tlx.diagnosis.trial import config_key, trial
from tlx.models.outputs import sample_losses

MANY = 0.9  # of a layer's units
LAYER = 16  # units, from which a share says something
UNRELATED = 0.25  # correlation of the features in the two modes


def finite_values(case: Case) -> Iterator[Finding]:
    probe = probe_of(case)
    if probe.not_finite is not None:
        yield Finding(
            "not_finite", "error",
            f"the first NaN or infinite value comes out of {probe.not_finite}",
            "backbone.weights=imagenet; trainer.precision=32",
        )  # fmt: skip


def living_units(case: Case) -> Iterator[Finding]:
    """The worst layer speaks for all."""
    alive = probe_of(case).alive
    dead = {path: 1 - float(units.float().mean()) for path, units in alive.items()}
    worst = max(dead, key=lambda path: dead[path], default=None)
    if worst is None or dead[worst] <= MANY or len(alive[worst]) < LAYER:
        return
    units, layers = len(alive[worst]), sum(share > MANY for share in dead.values())
    gone = round(dead[worst] * units)
    yield Finding(
        "dead_units",
        "error" if gone == units else "warning",
        f"{gone} of {units} units of {worst} are 0 on every one of {len(probe_of(case).labels)} "
        f"images and everywhere in them; so are more than {MANY:.0%} in {layers} of {len(dead)} "
        "layers",
        "backbone.weights=imagenet; in the head head.activation=leaky_relu",
        {"share": dead[worst], "units": units, "layers": layers},
    )


def outputs_are_logits(case: Case) -> Iterator[Finding]:
    """Rows that already add up to 1, whatever made them so."""
    logits = probe_of(case).logits
    if logits.ndim != 2 or logits.shape[1] == 1 or len(logits) == 0:
        return
    off = float((logits.sum(dim=1) - 1).abs().max())
    if off < 1e-4 and float(logits.min()) >= 0:
        yield Finding(
            "softmax", "error",
            f"the network's outputs are probabilities: all {len(logits)} rows are within 0-1 and "
            f"add up to 1 (within {off:.1g}), and the loss applies its own softmax",
            "end the head with its Linear layer", {"largest_deviation": off},
        )  # fmt: skip


def train_and_evaluation_mode(case: Case) -> Iterator[Finding]:
    """Of pretrained BatchNorm that adapts: do its batches see what its running statistics say?"""
    probe, job = probe_of(case), case.job
    if job.config.backbone.weights is None or probe.not_finite is not None:
        return
    classifier, last = job.model.classifier, len(job.model.classifier.groups) - 1
    for stage in job.config.stages:
        with trial(classifier, stage) as copied, torch.no_grad():
            adapting = [m for m in copied.modules() if isinstance(m, _BatchNorm) and m.training]
            copied.eval()
            for norm in adapting:
                norm.train()
            if not adapting:
                continue
            start = classifier.locate(stage.train_from) if stage.batchnorm == "frozen" else 0
            batches = torch.split(probe.features[start], max(2, job.config.data.batch_size))
            in_training = torch.cat([copied.head.pool(copied.backbone(b, start)) for b in batches
                                     if len(b) > 1])  # fmt: skip
            in_evaluation = classifier.head.pool(probe.features[last])[: len(in_training)]
        related = correlation(in_training, in_evaluation)
        if related < UNRELATED:
            learning = "" if stage.batchnorm != "frozen" else "_learning"
            yield Finding(
                "batchnorm", "error",
                f"stage {stage.name}: the features of the same {len(in_training)} images in "
                f"training and in evaluation mode have a correlation of {related:.2f}: what "
                "BatchNorm sees in a batch is not what its running statistics say",
                f"{config_key(stage)}.batchnorm{learning}=frozen",
                {"correlation": related, "layers": len(adapting)},
            )  # fmt: skip
            return


def correlation(a: Tensor, b: Tensor) -> float:
    """Over images and units, of what differs between the images."""
    a, b = (x.double() - x.double().mean(dim=0) for x in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-300))


ENOUGH = 0.5  # of the loss of guessing: what a head that fits the images is far below
ROUNDS = 60  # of L-BFGS
CONSTANT = 1e-5  # spread over the images, relative to the features' length


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
