"""Test-time augmentation: the views of an image over which evaluation averages."""

from dataclasses import replace

from tlx.data.augment import Augment
from tlx.errors import UserError


def tta_augment(augment: Augment, views: int) -> Augment:
    """What the views after the first, the image itself, are drawn from: training's augmentation
    without what changes the truth, mixing and erasing; mirror images where that leaves nothing.

    Raises UserError for more views than there are.
    """
    milder = replace(augment, mixup=0.0, cutmix=0.0, erasing=0.0)
    if not milder.is_random:
        milder = Augment(horizontal_flip=True)
    there = len(milder.mirrorings)
    if there and views > there:
        raise UserError(
            f"tta={views}: with mirror images as the only augmentation there are {there} views, "
            f"the image itself among them; use tta={there}, or train with more, such as "
            "augment=light."
        )
    return milder
