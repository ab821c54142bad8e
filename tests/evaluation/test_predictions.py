"""Predictions against the network called by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from tlx.data.augment import Augment, apply
from tlx.data.tta import Views
from tlx.errors import UserError
from tlx.evaluation.predictions import Compute, predict
from tlx.models.folder import Architecture, SavedModel, build_classifier
from tlx.models.preprocess import Preprocess

SHAKE = Augment(rotation_range=15, zoom_range=(0.7, 1.3))


@pytest.fixture
def model() -> SavedModel:
    preprocess = Preprocess.for_weights("resnet18", image_size=32)
    torch.manual_seed(0)
    classifier = build_classifier(
        Architecture("resnet18", 32, 3, pool="avg", hidden=(), activation="relu",
                     dropout=0.0)
    ).eval()  # fmt: skip
    with torch.no_grad():  # else an untrained network says nearly the same of every picture
        classifier.head.layers.output.weight.mul_(20)
    return SavedModel(classifier, preprocess, ("a", "b", "c"))


@pytest.fixture
def files(image_folder):
    return sorted(image_folder.rglob("*.png"))[::5]


def by_hand(model, files, change=lambda image: image):
    images = torch.stack([change(model.preprocess(Image.open(file))) for file in files])
    with torch.no_grad():
        logits = model.classifier(model.preprocess.normalize(images))
    return torch.softmax(logits.double(), 1).numpy()


def compute(tta=1, **settings):
    return Compute(torch.device("cpu"), False, 2, 0, Views(tta, **settings))


def test_one_view_is_the_image_itself_whatever_training_did(model, files):
    for augment in (Augment(), SHAKE):
        found = predict(model, files, compute(augment=augment))
        np.testing.assert_allclose(found, by_hand(model, files), atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.01


@pytest.mark.parametrize("augment", [Augment(), Augment(mixup=0.5, cutmix=0.5, erasing=1.0)])
def test_without_augmentation_two_views_are_the_image_and_its_mirror_image(model, files, augment):
    plain, mirrored = by_hand(model, files), by_hand(model, files, lambda image: image.flip(2))
    assert np.abs(plain - mirrored).max() > 1e-3
    found = predict(model, files, compute(2, augment=augment))
    np.testing.assert_allclose(found, (plain + mirrored) / 2, atol=1e-5)
    with pytest.raises(UserError, match="tta=3: with mirror images .* there are 2 views.* tta=2"):
        predict(model, files, compute(3, augment=augment))


def test_with_both_mirror_images_four_views_are_all_of_them(model, files):
    axes = ([], [2], [1], [1, 2])
    expected = np.mean(
        [by_hand(model, files, lambda image, a=a: image.flip(a)) for a in axes], axis=0
    )
    augment = Augment(horizontal_flip=True, vertical_flip=True)
    np.testing.assert_allclose(
        predict(model, files, compute(4, augment=augment)), expected, atol=1e-5
    )


def test_further_views_are_draws_of_trainings_augmentation_equal_for_all(model, files):
    views = [
        by_hand(model, files, lambda image, v=view: apply(image[None], [SHAKE.draw(5, v, 0)])[0])
        for view in (1, 2, 3)
    ]
    expected = np.mean([by_hand(model, files), *views], axis=0)
    found = predict(model, files, compute(4, augment=SHAKE, seed=5))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
    # neither order nor company matters
    again = predict(model, files[::-1][:3], compute(4, augment=SHAKE, seed=5))
    np.testing.assert_allclose(again, found[::-1][:3], atol=1e-5)


def test_the_model_says_how_images_are_decoded(model, tmp_path):
    Image.new("RGBA", (40, 40)).save(tmp_path / "clear.png")
    found = {}
    for alpha, colour in (("white", (255, 255, 255)), ("black", (0, 0, 0))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "opaque.png")
        values = model.preprocess.to_dict() | {"alpha": alpha}
        own = SavedModel(model.classifier, Preprocess.from_dict(values), model.classes)
        files = [tmp_path / "clear.png", tmp_path / "opaque.png"]
        clear, opaque = found[alpha] = predict(own, files, compute())
        np.testing.assert_allclose(clear, opaque, atol=1e-6)
    assert np.abs(found["white"] - found["black"]).max() > 1e-3


def test_weights_that_are_not_finite_are_said(model, files):
    with torch.no_grad():
        next(model.classifier.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=f"{len(files)} of {len(files)} images have NaN"):
        predict(model, files, compute(2))
