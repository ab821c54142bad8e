"""From a file to pixels, (3, H, W) uint8."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tlx.data.images import Decoding, Used, decoded, opened


def decode_pixels(data: bytes, path: Path, decoding: Decoding, used: Used = min) -> Tensor:
    """What `decode_rgb` makes. Raises UnreadableImage.

    `used`, of the upright picture's width and height, is the shorter side of the part that will
    be used: what `decoding.side` is compared with.
    """
    with opened(data, path) as image:
        return to_pixels(decoded(image, data, decoding, used))


def to_pixels(image: Image.Image) -> Tensor:
    """Of an RGB image; laid out as (H, W, 3), which torchvision resizes fastest."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
