"""Images as points for TensorBoard's Projector: features, thumbnails and what is known of each."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlx.evaluation.style import printable
from tlx.files import replace_atomically

SIDE = 48  # pixels of a thumbnail
COLUMNS = ("label", "predicted", "probability", "path")


def write_projector(
    folder: Path,
    name: str,
    features: NDArray[np.float32],
    thumbnails: Sequence[Image.Image],
    rows: Sequence[tuple[str, ...]],
) -> None:
    """`features` (n, width), n thumbnails of SIDE × SIDE, n rows of COLUMNS.

    `projector_config.pbtxt` is what the Projector looks for in a run's folder.
    """
    place = folder / "projector" / name
    with replace_atomically(place / "tensors.tsv") as temporary:
        np.savetxt(temporary, features, fmt="%.5g", delimiter="\t")
    with replace_atomically(place / "metadata.tsv") as temporary:
        lines = ["\t".join(map(printable, row)) for row in [COLUMNS, *rows]]
        temporary.write_text("\n".join(lines) + "\n", "utf-8")
    with replace_atomically(place / "sprite.png") as temporary:
        _sprite(thumbnails).save(temporary, format="png")
    with replace_atomically(folder / "projector_config.pbtxt") as temporary:
        temporary.write_text(
            f'embeddings {{\n  tensor_name: "{name}"\n'
            f'  tensor_path: "projector/{name}/tensors.tsv"\n'
            f'  metadata_path: "projector/{name}/metadata.tsv"\n'
            f'  sprite {{\n    image_path: "projector/{name}/sprite.png"\n'
            f"    single_image_dim: [{SIDE}, {SIDE}]\n  }}\n}}\n",
            "utf-8",
        )


def _sprite(thumbnails: Sequence[Image.Image]) -> Image.Image:
    """As many columns as rows, filled row by row, as the Projector reads it."""
    across = math.ceil(math.sqrt(len(thumbnails)))
    sprite = Image.new("RGB", (across * SIDE, across * SIDE))
    for place, thumbnail in enumerate(thumbnails):
        sprite.paste(thumbnail, (place % across * SIDE, place // across * SIDE))
    return sprite
