"""Whether the network holds the weights that the configuration asks for."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import Finding
from tlx.models.folder import build_classifier
from tlx.models.weights import resolve_weights

FROM_WEIGHTS = ("backbone.", "head.layers.norm.")


def weights_loaded(case: Case) -> Iterator[Finding]:
    spec = case.job.config.backbone
    found = resolve_weights(spec.name, spec.weights, classifier=spec.classifier)
    if found is None:
        yield from _frozen_at_random(case)
        return
    wanted = build_classifier(case.job.architecture, found.state_dict).state_dict()
    wanted = {k: v for k, v in wanted.items() if k.startswith(FROM_WEIGHTS)}
    if not any(map(torch.count_nonzero, map(_untrained_part, wanted.values()))):
        yield Finding(
            "weights_not_loaded", "error",
            f"{found.source} holds weights as a new network has them: every bias is 0, every "
            "norm at its first value. They were saved before they were trained",
            "backbone.weights=imagenet", {"tensors": len(wanted)},
        )  # fmt: skip
    has = case.job.model.classifier.state_dict()
    wrong = [name for name, tensor in wanted.items() if _differs(has[name], tensor)]
    if wrong:
        first = wrong[0].removeprefix("backbone.blocks.")
        far = float((has[wrong[0]].double() - wanted[wrong[0]].double()).abs().max())
        yield Finding(
            "weights_not_loaded", "error",
            f"{len(wrong)} of {len(wanted)} tensors are not those of {found.source}; the first is "
            f"{first}, which differs by up to {far:.2g}",
            f"backbone.weights={spec.weights}: load them again, and change nothing of them",
            {"different": len(wrong), "tensors": len(wanted), "largest_difference": far},
        )  # fmt: skip


def _differs(has: Tensor, wanted: Tensor) -> bool:
    """By value; NaN and infinite ones are another cause's."""
    return not torch.equal(has.cpu(), wanted) and bool(has.isfinite().all())


def _untrained_part(tensor: Tensor) -> Tensor:
    """What of a tensor training would have moved: of biases and norms the distance from 0 or 1."""
    if tensor.ndim != 1 or not tensor.is_floating_point():
        return torch.zeros(1)
    return torch.minimum(tensor.abs(), (tensor - 1).abs())


def _frozen_at_random(case: Case) -> Iterator[Finding]:
    """Blocks with matrices that a stage freezes before any stage has trained them."""
    classifier, stages = case.job.model.classifier, case.job.config.stages
    trained = len(classifier.groups)
    for stage in stages:
        trained = min(trained, classifier.locate(stage.train_from))
        frozen = [b for b in classifier.weighted_blocks if classifier.locate(b) < trained]
        if frozen:
            yield Finding(
                "weights_not_loaded", "warning",
                f"backbone.weights=null, and stage {stage.name} freezes {', '.join(frozen)}: "
                "the rest learns from what random filters give",
                "backbone.weights=imagenet; or stage=scratch",
                {"random_blocks": len(frozen)},
            )  # fmt: skip
            return


def tensors_finite(case: Case) -> Iterator[Finding]:
    """NaN and infinite values in the weights themselves."""
    classifier = case.job.model.classifier
    state: Mapping[str, Tensor] = classifier.state_dict()
    sick = [name for name, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if sick:
        count = sum(int((~state[name].isfinite()).sum()) for name in sick)
        module, _, kind = sick[0].removeprefix("backbone.blocks.").rpartition(".")
        yield Finding(
            "not_finite", "error",
            f"{count} values of the network are NaN or infinite, the first in the {kind} of "
            f"{module}",
            "backbone.weights=imagenet: these weights are damaged",
            {"values": count, "tensors": len(sick)},
        )  # fmt: skip
