"""The features that a head takes in, kept from a pass that happens anyway."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tlx.files import replace_atomically
from tlx.models.classifier import Classifier


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
            pooled = {4: lambda f: f.mean(dim=(2, 3)), 3: lambda f: f[:, 0], 2: lambda f: f}
            rows.append(pooled[features.dim()](features).detach().float().cpu())

    hook = classifier.head.register_forward_pre_hook(take)
    try:
        yield
    finally:
        hook.remove()
    if rows:
        with replace_atomically(path) as temporary, temporary.open("wb") as file:
            np.save(file, torch.cat(rows).numpy())
