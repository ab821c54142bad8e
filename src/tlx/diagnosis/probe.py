"""A few training images on their way through the network, once: what each module makes of them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tlx.diagnosis.case import Case
from tlx.diagnosis.trial import unchanged
from tlx.models.classifier import Classifier

CHUNK = 8  # images at a time: what VGG16 makes of more at 224 pixels takes gigabytes
ZEROING = (nn.ReLU, nn.ReLU6, nn.Hardswish)  # in torchvision's networks units are their dim 1


@dataclass(frozen=True)
class Probe:
    """In evaluation mode. Where something is not finite the passage ends there."""

    labels: Tensor  # (n,)
    features: Mapping[int, Tensor]  # what layer group k takes in, (n, …)
    logits: Tensor  # (n, outputs); none where the passage ended
    alive: Mapping[str, Tensor]  # activation's path → per unit, whether it is ever above 0
    not_finite: str | None  # the first module whose output is NaN or infinite


@dataclass
class _Seen:
    alive: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def activation(self, path: str, output: Tensor) -> None:
        """ResNet calls the same ReLU more than once: each call is one of its own."""
        call = self.calls[path] = self.calls.get(path, 0) + 1
        place = path if call == 1 else f"{path} (call {call})"
        alive = (output != 0).transpose(1, -1).flatten(0, -2).any(dim=0)
        self.alive[place] = self.alive.get(place, torch.zeros_like(alive)) | alive


class _NotFinite(Exception):  # noqa: N818 — it ends the passage
    pass


def probe_of(case: Case) -> Probe:
    """Of the case, made when it is first asked for and kept with it, as a cached property is."""
    if "_probe" not in case.__dict__:
        indices = case.indices("train")
        case.__dict__["_probe"] = look(
            case.job.model.classifier,
            case.job.model.preprocess.normalize(case.images("train", indices)),
            case.labels("train")[indices],
            [stage.train_from for stage in case.job.config.stages],
        )
    probe: Probe = case.__dict__["_probe"]
    return probe


def look(classifier: Classifier, images: Tensor, labels: Tensor, starts: list[str]) -> Probe:
    """`images` (n, 3, H, W) are normalised; features are kept before `starts` and the head."""
    groups = len(classifier.groups) - 1
    cuts = sorted({0, groups, *map(classifier.locate, starts)})
    kept: dict[int, list[Tensor]] = {cut: [] for cut in cuts}
    logits: list[Tensor] = []
    seen, broken = _Seen(), None
    if classifier.backbone.is_convolutional:
        images = images.contiguous(memory_format=torch.channels_last)
    with unchanged(classifier), _watched(classifier, seen), torch.no_grad():
        classifier.eval()
        try:
            for x in torch.split(images, CHUNK):
                seen.calls.clear()
                logits.append(_pass(classifier, x, cuts, kept))
        except _NotFinite as error:
            broken = str(error)
    whole = {cut: torch.cat(parts) for cut, parts in kept.items() if len(parts) > 0}
    outputs = torch.cat(logits) if broken is None else torch.empty(0)
    if not outputs.isfinite().all():
        broken = "head"
    return Probe(labels, whole, outputs, seen.alive, broken)


def _pass(
    classifier: Classifier, x: Tensor, cuts: list[int], kept: Mapping[int, list[Tensor]]
) -> Tensor:
    at = 0
    for cut in cuts:
        x = classifier.backbone(x, at, cut)
        kept[cut].append(x.clone())  # some blocks begin with an operation in place
        at = cut
    logits: Tensor = classifier.head(x)
    return logits


@contextmanager
def _watched(classifier: Classifier, seen: _Seen) -> Iterator[None]:
    with ExitStack() as stack:
        for path, module, _ in classifier.modules_from("head"):
            if module._parameters or not any(True for _ in module.children()):
                stack.enter_context(module.register_forward_hook(_watch(path, seen)))
        yield


def _watch(path: str, seen: _Seen) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output  # attention's
        if not output.isfinite().all():
            raise _NotFinite(path)
        if isinstance(module, ZEROING):
            seen.activation(path, output)

    return hook
