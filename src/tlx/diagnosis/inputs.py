"""What the first layer really receives, against what the weights were trained on."""

from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor, nn

from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import Finding
from tlx.models.families import adapter
from tlx.models.preprocess import Preprocess
from tlx.models.weights import weights_member

LOOKED_AT = 16  # images
SAME = 1e-3  # of the input's standard deviations; float32 differs by less
FEW_LEVELS, EIGHTH = 3, 31  # of 255: bytes made of 0–1; of 12 or fewer bits in 16
ROUND = 32  # what sides are a multiple of in most networks
BLUE = 0.05  # of the full range: how far blue may be above red


def input_mismatch(case: Case) -> Iterator[Finding]:
    """The preprocessing as it works, against that of the weights on the same images."""
    images = case.images("train", case.indices("train", LOOKED_AT))
    if case.job.config.backbone.weights is not None:
        yield from _mismatch(case, images)
    yield from _levels(images)


def _mismatch(case: Case, images: Tensor) -> Iterator[Finding]:
    backbone = case.job.model.classifier.backbone
    received = first_input(backbone, case.job.model.preprocess.normalize(images))
    wanted = [first_input(backbone, p.normalize(images)) for p in _of_weights(case)]
    if not wanted:
        return
    nearest = min(wanted, key=lambda other: _distance(received, other))
    if _distance(received, nearest) < SAME:
        return
    swapped = _distance(received.flip(1), nearest) < SAME
    numbers = {"distance": _distance(received, nearest)}
    for name, x in (("received", received), ("wanted", nearest)):
        for channel, letter in enumerate("rgb"):
            numbers[f"{name}_mean_{letter}"] = x[:, channel].mean().item()
            numbers[f"{name}_std_{letter}"] = x[:, channel].std().item()
    yield Finding(
        "input_mismatch", "error",
        f"the first layer receives {_told(received)}; the weights were trained on inputs that "
        f"would be, for these {len(images)} images, {_told(nearest)}"
        + "; the channels are in the reverse order" * swapped,
        "preprocess.input=weights", numbers,
    )  # fmt: skip


def _of_weights(case: Case) -> list[Preprocess]:
    """What torchvision's weights of the network expect: nearly always one thing for all of them."""
    from torchvision.models import get_model_weights  # type: ignore[attr-defined]

    name, own = case.job.config.backbone.name, case.job.model.preprocess
    try:
        members = get_model_weights(name)
    except ValueError:  # a network of our own
        return []
    found = {
        (p.mean, p.std): p
        for member in members
        if (p := Preprocess.for_weights(name, member.name, image_size=own.image_size))
    }
    return list(found.values())


class _Reached(Exception):  # noqa: N818 — it ends a forward pass, nothing is wrong
    def __init__(self, x: Tensor) -> None:
        self.x = x


def first_input(network: nn.Module, x: Tensor) -> Tensor:
    """What the first module that has parameters takes in; nothing is computed after that."""

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise _Reached(args[0])

    modules = [m for m in network.modules() if any(True for _ in m.parameters(recurse=False))]
    hooks = [
        m.register_forward_pre_hook(stop) for m in modules if not any(True for _ in m.children())
    ]
    try:
        with torch.no_grad():
            network(x)
    except _Reached as reached:
        return reached.x
    finally:
        for hook in hooks:
            hook.remove()
    return x


def _distance(a: Tensor, b: Tensor) -> float:
    """In standard deviations of b, at the worst value."""
    return ((a - b).abs().max() / b.std().clamp(min=1e-6)).item()


def _told(x: Tensor) -> str:
    def listed(values: Tensor) -> str:
        return "/".join(f"{v:.3g}" for v in values.tolist())

    return (
        f"R/G/B means of {listed(x.mean((0, 2, 3)))} with deviations {listed(x.std((0, 2, 3)))}, "
        f"from {x.min().item():.3g} to {x.max().item():.3g}"
    )


def _levels(images: Tensor) -> Iterator[Finding]:
    """What the files hold, whatever the network: nearly no light, or blue above red."""
    highest = int(images.max())
    if highest <= EIGHTH:
        yield Finding(
            "input_mismatch", "error" if highest <= FEW_LEVELS else "warning",
            f"no pixel of {len(images)} images is above {highest} of 255: "
            + ("0 to 1 saved as bytes?" if highest <= FEW_LEVELS else "few of 16 bits in use?"),
            "save the images anew, with their values scaled to 0 to 255 (with 16 bits, 65535)",
            {"highest": highest},
        )  # fmt: skip
    means = images.float().mean((2, 3)) / 255
    excess = means[:, 2] - means[:, 0]
    error = excess.std().item() / len(images) ** 0.5
    if len(images) > 1 and excess.mean().item() > max(BLUE, 4 * error):
        red, blue = means[:, 0].mean().item(), means[:, 2].mean().item()
        yield Finding(
            "input_mismatch", "note",
            f"blue ({blue:.2f}) is above red ({red:.2f}) in these images, in photographs mostly "
            "below: were they saved with red and blue swapped (OpenCV's order), or as negatives?",
            "look at one; if its colours are wrong, save the images anew",
            {"red": red, "blue": blue},
        )  # fmt: skip


def small_images(case: Case) -> Iterator[Finding]:
    size = case.job.model.preprocess.image_size
    train = case.job.manifest.split("train")
    shorter = [min(s.width, s.height) for s in train if min(s.width, s.height) > 0]
    if not shorter or (middle := median(shorter)) > size / 2:
        return
    backbone = case.job.model.classifier.backbone
    steps = adapter(backbone.name, classifier=False).size_step
    step = ROUND if steps is None else steps(backbone.name)
    smallest = step if backbone.image_size is not None else backbone.min_size
    better = -(-max(int(middle), smallest, _least_for_weights(case)) // step) * step
    longer = f"{(size / better) ** 2:.1f} times as long as {better} pixels would"
    yield Finding(
        "small_images", "warning" if better < size else "note",
        f"the shorter side of half of the train images is at most {middle:g} pixels, and is "
        f"enlarged {size / middle:.1f} times to {size}: that adds no detail"
        + (f" and takes {longer}" if better < size else ""),
        f"data.image_size={better}" if better < size else "find larger images",
        {"median": middle, "image_size": size},
    )  # fmt: skip


def _least_for_weights(case: Case) -> int:
    """Half of what they were trained on: below that pretrained networks tell less.

    Digits of 8 × 8 pixels, SqueezeNet 1.1: test accuracy 0.914 at 224, 0.939 at 112, 0.838 at 64
    and 0.716 at 32.
    """
    spec = case.job.config.backbone
    if spec.weights is None:
        return 0
    return (
        Preprocess.for_weights(spec.name, weights_member(spec.name, spec.weights)).image_size // 2
    )
