"""From a file to pixels, (3, H, W) uint8."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from simplejpeg import decode_jpeg
from torch import Tensor

from tlx.data.images import Decoding, Used, decoded, opened, orientation, reduction


def decode_pixels(data: bytes, path: Path, decoding: Decoding, used: Used = min) -> Tensor:
    """What `decode_rgb` makes. Raises UnreadableImage.

    `used`, of the upright picture's width and height, is the shorter side of the part that will
    be used: what `decoding.side` is compared with.
    """
    with opened(data, path) as image:
        if (
            image.format == "JPEG"
            and image.mode == "RGB"
            and orientation(image) is None
            and not decoding.icc
            and reduction(image, decoding, used) == 1
        ):
            # Pillow's pixels in two thirds of its time
            with suppress(ValueError):  # at anything odd about the data: Pillow then judges
                return torch.from_numpy(decode_jpeg(data)).permute(2, 0, 1)
        return to_pixels(decoded(image, data, decoding, used))


def to_pixels(image: Image.Image) -> Tensor:
    """Of an RGB image; laid out as (H, W, 3), which torchvision resizes fastest."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
