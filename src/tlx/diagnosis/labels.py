"""Whether labels belong to their images and survive augmentation, by the network's features."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from tlx.data.augment import Augment
from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import Finding
from tlx.diagnosis.separability import (
    centred_targets,
    is_constant,
    left_out_scores,
    permutation_test,
    scores,
    sign_test,
)
from tlx.diagnosis.trial import unchanged

IMAGES, AGAIN = 128, 256  # from train; so many where the first leave it open
VAL_IMAGES, TRIED = 32, 24  # from val; for each ingredient of an augmentation
OF_CLASS = 8  # from val of each class at least: two exchanged ones are known by fewer images hardly
CLASSES = 8  # the most frequent: of a hundred classes, 128 images would show one each
FEWEST = 24  # images that can tell anything
SIZE = 112  # pixels, where the network takes it: a quarter of the time of 224
CLEAR, OPEN = 0.005, 0.05  # p below which labels fit the images; above which they do not
SWAPPED, WEAKER = 0.001, 0.02  # p of the sign tests
MOST = 0.6  # of what is above chance
CLEARLY = 0.5  # of a class's val images, which look like one other class of train
INERT = {"fill_mode", "cval", "crop_ratio", "num_ops", "magnitude", "mixup", "cutmix"}


def labels_and_augmentation(case: Case) -> Iterator[Finding]:
    """shuffled_labels, class_order and strong_augmentation, which share the features."""
    places, accuracy, p, plain = _separability(case)
    if not places:
        return
    labels = case.labels("train")[places]
    classes, labels = torch.unique(labels, return_inverse=True)
    chance = labels.bincount().max().item() / len(labels)
    if p > OPEN:
        yield _shuffled(case, accuracy, chance, p, len(labels))
    if p < WEAKER:
        yield from _swapped(case, plain, labels, classes)
        yield from _strong_augmentation(case, places, plain, labels, chance)


def _separability(case: Case) -> tuple[list[int], float, float, Tensor]:
    """Train images, the accuracy and p of their labels, and features; no images: it is not known.

    Pixels count as well as the network's features: colours may be all there is to see.
    """
    nothing: tuple[list[int], float, float, Tensor] = ([], 0.0, 1.0, torch.empty(0))
    every = _places(case, "train", AGAIN)
    seed, network, pixels = case.job.config.seed, torch.empty(0), torch.empty(0)
    result = nothing
    for count in (IMAGES, AGAIN):
        places = every[:count]
        labels = case.labels("train")[places]
        if len(places) < FEWEST or len(places) == len(network) or len(set(labels.tolist())) < 2:
            break
        images = case.images("train", places[len(network) :])
        network = torch.cat([network, features(case, images)])
        pixels = torch.cat([pixels, _pixels(images)])
        labels = torch.unique(labels, return_inverse=True)[1]
        tests = [permutation_test(x, labels, seed=seed) for x in (network, pixels)
                 if not is_constant(x)]  # fmt: skip
        if is_constant(network) or not tests:
            return nothing
        accuracy, p = tests[0][0], min(1.0, len(tests) * min(p for _, p in tests))
        result = places, accuracy, p, network
        if p < CLEAR:
            break
    return result


def _places(case: Case, split: str, count: int, among: Sequence[int] | None = None) -> list[int]:
    """Of the most frequent classes of train, or of those given, equally many each."""
    labels = case.labels(split).tolist()
    if among is None:
        among = [label for label, _ in Counter(labels).most_common(CLASSES)]
    drawn = case.indices(split, len(labels))
    return [place for place in drawn if labels[place] in among][:count]


def features(case: Case, images: Tensor) -> Tensor:
    """(n, d): the mean of every channel, or token, after every block. `images` as Case has them."""
    backbone, preprocess = case.job.model.classifier.backbone, case.job.model.preprocess
    side = images.shape[-1]
    if backbone.image_size is None and side > SIZE >= backbone.min_size:
        side = SIZE
    found = []
    with unchanged(case.job.model.classifier), torch.inference_mode():
        backbone.eval()
        for part in torch.split(images, 16):
            x = preprocess.normalize(part)
            x = interpolate(x, size=(side, side), mode="bilinear", antialias=True)
            if backbone.is_convolutional:
                x = x.contiguous(memory_format=torch.channels_last)
            means = []
            for block in backbone.blocks:
                x = block(x)
                means.append(x.flatten(2).mean(2) if x.dim() == 4 else x.mean(1))
            found.append(torch.cat(means, 1))
    return torch.cat(found).clone()


def _pixels(images: Tensor) -> Tensor:
    """(n, 216): 8×8 pixels in colour, and how often each channel has each eighth of the levels."""
    small = interpolate(images.float() / 255, size=(8, 8), mode="area").flatten(1)
    levels = one_hot(images.flatten(2).long() // 32, 8).float().mean(2).flatten(1)
    return torch.cat([small, levels], 1)


def _shuffled(case: Case, accuracy: float, chance: float, p: float, n: int) -> Finding:
    name = case.job.config.backbone.name
    return Finding(
        "shuffled_labels",
        "warning" if _is_pretrained(case) and n >= IMAGES else "note",
        f"labels of {n} train images fit the features of {name} no better than shuffled labels "
        f"would (p = {p:.2g}): {accuracy:.2f} are told from the others, {chance:.2f} by chance"
        + "; but its weights are random, which tells little" * (not _is_pretrained(case)),
        "look at images and labels side by side: was a list of labels sorted otherwise than the "
        "files? Else the classes differ in nothing that the network sees",
        {"accuracy": accuracy, "chance": chance, "p": p, "images": n},
    )  # fmt: skip


def _is_pretrained(case: Case) -> bool:
    """Features of random weights may miss what others would see."""
    return case.job.config.backbone.weights is not None


def _swapped(case: Case, plain: Tensor, labels: Tensor, classes: Tensor) -> Iterator[Finding]:
    """Whether val's images look like another class of train, class by class.

    Of many classes only a few may be exchanged, and some for classes that are not looked at.
    """
    count = max(VAL_IMAGES, OF_CLASS * len(classes))
    places = _places(case, "val", count, classes.tolist())
    if len(places) < FEWEST:
        return
    of_val = torch.searchsorted(classes, case.labels("val")[places])
    found = scores(plain, features(case, case.images("val", places)), centred_targets(labels))
    looks = found.argmax(1)
    table = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    table.index_put_((of_val, looks), torch.ones_like(looks), accumulate=True)
    most, other = table.max(1)
    moved = (other != torch.arange(len(classes))) & (most >= CLEARLY * table.sum(1)) & (most > 0)
    if moved.sum() < 2 or len(set(other[moved].tolist())) < moved.sum():
        return
    as_labelled, exchanged = int(table.diagonal()[moved].sum()), int(most[moved].sum())
    n = int(table[moved].sum())
    if sign_test(exchanged, as_labelled) > SWAPPED:
        return
    names = case.job.manifest.classes
    pairs = ", ".join(
        f"{names[classes[i]]!r} looks like {names[classes[other[i]]]!r}"
        for i in moved.nonzero()[:, 0]
    )
    yield Finding(
        "class_order", "error",
        f"val's classes are train's in another order: {pairs}; {exchanged} of their {n} "
        f"val images look so, and {as_labelled} as they are labelled",
        "correct the labels of val (and look at test's), or both by data=csv data.table=FILE",
        {"exchanged": exchanged, "as_labelled": as_labelled, "images": n},
    )  # fmt: skip


def _strong_augmentation(
    case: Case, places: Sequence[int], plain: Tensor, labels: Tensor, chance: float
) -> Iterator[Finding]:
    """What a classifier of plain images makes of augmented views of images that it has not seen."""
    augment = replace(case.data.augment, mixup=0.0, cutmix=0.0)  # their labels are mixed as well
    if not augment.is_random:
        return
    places, plain, labels = places[:IMAGES], plain[:IMAGES], labels[:IMAGES]
    targets = centred_targets(labels)
    right = left_out_scores(plain, plain, targets).argmax(1) == labels
    views = features(case, _views(case, places, augment))
    still = left_out_scores(plain, views, targets).argmax(1) == labels
    before, after = right.double().mean().item(), still.double().mean().item()
    p = sign_test(int((right & ~still).sum()), int((still & ~right).sum()))
    if p > WEAKER or before - after < MOST * (before - chance):
        return
    alone = _right_alone(case, augment, places, plain, labels)
    worst = min(alone, key=lambda name: alone[name])
    trained = left_out_scores(views, plain, targets).argmax(1) == labels
    yield Finding(
        "strong_augmentation", "warning" if _is_pretrained(case) else "note",
        f"a classifier of the network's features is right on {before:.2f} of {len(places)} train "
        f"images that it has not seen, on {after:.2f} of their augmented views (chance: "
        f"{chance:.2f}, p = {p:.1g}); of its parts alone, the worst is {worst}="
        f"{_text(getattr(augment, worst))}",
        f"augment.{worst}={_text(_DEFAULTS[worst])}, or augment=light",
        {
            "plain": before, "augmented": after, "chance": chance, "p": p, "images": len(places),
            "trained_on_views": trained.double().mean().item(),
            **{f"with_{name}_alone": share for name, share in alone.items()},
        },
    )  # fmt: skip


_DEFAULTS = {f.name: f.default for f in fields(Augment) if f.default is not MISSING}


def _right_alone(
    case: Case, augment: Augment, places: Sequence[int], plain: Tensor, labels: Tensor
) -> dict[str, float]:
    """The share of a few images whose views by one ingredient alone are still told rightly."""
    kept = {name: getattr(augment, name) for name in INERT}
    targets = centred_targets(labels)
    shares = {}
    for name, default in _DEFAULTS.items():
        value = getattr(augment, name)
        if name not in INERT and value != default:
            views = features(case, _views(case, places[:TRIED], Augment(**{**kept, name: value})))
            found = left_out_scores(plain, torch.cat([views, plain[TRIED:]]), targets)
            right = found.argmax(1)[:TRIED] == labels[:TRIED]
            shares[name] = right.double().mean().item()
    return shares


def _views(case: Case, places: Sequence[int], augment: Augment) -> Tensor:
    dataset = case.data.dataset("train")
    dataset.augment = augment
    return dataset.__getitems__([(place, 0) for place in places])[0]


def _text(value: Any) -> str:
    """As on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)).replace(" ", "") if isinstance(value, tuple) else f"{value}"
