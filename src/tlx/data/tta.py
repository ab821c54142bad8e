"""Test-time augmentation: the views of an image over which evaluation averages."""

from dataclasses import replace

from tlx.data.augment import Augment
from tlx.errors import UserError


def tta_augment(augment: Augment, views: int) -> Augment:
    """What the views after the first, the image itself, are drawn from: training's augmentation
    without what changes the truth, mixing and erasing.

    Where that leaves none but mirror images, there is one more view, the mirror image; more raise
    UserError.
    """
    milder = replace(augment, mixup=0.0, cutmix=0.0, erasing=0.0)
    if not replace(milder, horizontal_flip=False, vertical_flip=False).is_random:
        milder = Augment()  # half of the draws would be the image itself
    if views > 2 and not milder.is_random:
        raise UserError(
            f"tta={views}: without augmentation beyond mirror images there are two views, the "
            "image and its mirror image; use tta=2, or train with more, such as augment=light."
        )
    return milder
