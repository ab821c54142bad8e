"""The features that a head takes in, kept from a pass that happens anyway."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tlx.files import replace_atomically
from tlx.models.classifier import Classifier


def one_vector(features: Tensor) -> Tensor:
    """(B, C) of maps, which are averaged, of tokens, whose class token it is, or of vectors."""
    if features.dim() == 4:
        return features.mean(dim=(2, 3))
    return features[:, 0] if features.dim() == 3 else features


@contextmanager
def kept_features(classifier: Classifier, path: Path, *, limit: int) -> Iterator[None]:
    """Write to `path` (.npy) those of the first `limit` images that pass meanwhile.

    (images, width) float32: maps are averaged, of tokens it is the class token.
    """
    rows: list[Tensor] = []

    def take(_: object, inputs: tuple[Tensor, ...]) -> None:
        wanted = limit - sum(len(part) for part in rows)
        if wanted > 0:
            features = inputs[0][:wanted]
            rows.append(one_vector(features).detach().float().cpu())

    hook = classifier.head.register_forward_pre_hook(take)
    try:
        yield
    finally:
        hook.remove()
    if rows:
        with replace_atomically(path) as temporary, temporary.open("wb") as file:
            np.save(file, torch.cat(rows).numpy())
