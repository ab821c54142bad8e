"""A photograph far larger than the network's input gives the same pixels wherever it is read."""

import numpy as np
import pytest
import torch
from PIL import Image

from tlx.data.augment import Augment
from tlx.data.datamodule import ImageData
from tlx.data.images import load_rgb
from tlx.data.loaders import prediction_loader
from tlx.data.manifest import Manifest, Sample
from tlx.models.preprocess import Preprocess


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_training_prediction_and_figures_read_a_large_jpeg_alike(tmp_path, resize):
    values = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(values).resize((2000, 1500)).save(tmp_path / "large.jpg")
    trained = Preprocess.for_weights("vgg16", image_size=224, resize=resize)
    saved = Preprocess.from_dict(trained.to_dict())  # what a model's folder says
    assert saved.decoding == trained.decoding
    samples = [Sample("large.jpg", "a", split, "", "") for split in ("train", "val", "test")]
    data = ImageData(
        Manifest.of(tmp_path, samples), trained, augment=Augment(), batch_size=1, num_workers=0,
        seed=0, decoding=trained.decoding,
    )  # fmt: skip
    files = [tmp_path / "large.jpg"]
    loader = prediction_loader(files, saved, batch_size=1, num_workers=0, decoding=saved.decoding)
    ((predicted, _, _),) = loader
    shown = saved(load_rgb(files[0], saved.decoding))
    for split in ("train", "val", "test"):
        assert torch.equal(data.dataset(split)[0, 0][0], predicted[0])
    assert torch.equal(shown, predicted[0])
    whole = saved(load_rgb(files[0]))
    assert not torch.equal(whole, shown)  # it was indeed decoded at a reduced size
    assert (whole.int() - shown.int()).abs().float().mean() < 2
