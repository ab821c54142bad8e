import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.models import get_model_weights
from torchvision.transforms import functional as F

from tlx.data.images import Decoding
from tlx.errors import UserError
from tlx.models.preprocess import INPUTS, Preprocess

MEMBERS = [
    ("vgg16", "IMAGENET1K_V1"),
    ("vgg16", "IMAGENET1K_FEATURES"),  # its std is 1/255
    ("resnet50", "IMAGENET1K_V1"),
    ("resnet50", "IMAGENET1K_V2"),
    ("efficientnet_b0", "IMAGENET1K_V1"),  # bicubic
    ("inception_v3", "IMAGENET1K_V1"),
    ("vit_b_16", "IMAGENET1K_V1"),
    ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"),  # 384 px
]


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours with noise on top, so that resizing has both to treat."""
    noise = np.random.default_rng(0).normal(0, 25, (height, width, 3))
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], -1)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("backbone", "member"), MEMBERS)
@pytest.mark.parametrize("size", [(333, 257), (101, 143), (640, 481), (225, 224)])
def test_equals_torchvisions_own_transforms_within_a_level(
    backbone: str, member: str, size: tuple[int, int]
) -> None:
    """They resize with Pillow, tlx with torch, whose roundings differ by 1 of 255 (bicubic: 2)."""
    image = photograph(*size)
    expected = get_model_weights(backbone)[member].transforms()(image)
    preprocess = Preprocess.for_weights(backbone, member)
    pixels = preprocess(image)
    assert pixels.dtype == torch.uint8
    std = torch.tensor(preprocess.std).view(3, 1, 1)
    levels = ((preprocess.normalize(pixels[None])[0] - expected) * std * 255).abs()
    assert levels.max() < (2.01 if preprocess.interpolation == "bicubic" else 1.01)
    assert levels.mean() < 0.02


def test_numbers_come_from_the_weights() -> None:
    sizes = {
        (backbone, member): (
            Preprocess.for_weights(backbone, member).resize_size,
            Preprocess.for_weights(backbone, member).image_size,
        )
        for backbone, member in MEMBERS
    }
    assert sizes[("vgg16", "IMAGENET1K_V1")] == (256, 224)
    assert sizes[("resnet50", "IMAGENET1K_V2")] == (232, 224)
    assert sizes[("inception_v3", "IMAGENET1K_V1")] == (342, 299)
    assert Preprocess.for_weights("efficientnet_b0").interpolation == "bicubic"
    assert Preprocess.for_weights("resnet50") == Preprocess.for_weights("resnet50", "IMAGENET1K_V2")


@pytest.mark.parametrize(("image_size", "resize_size"), [(224, 256), (112, 128), (96, 110), (1, 1)])
def test_another_size_keeps_the_proportion(image_size: int, resize_size: int) -> None:
    preprocess = Preprocess.for_weights("vgg16", image_size=image_size)
    assert preprocess.resize_size == resize_size
    assert preprocess(photograph(61, 40)).shape == (3, image_size, image_size)


def test_crop_is_the_centre_of_the_scaled_image() -> None:
    """A bright bar in the centre of a dark wide image fills the crop, and the ends fall away."""
    image = Image.new("RGB", (1024, 256))
    image.paste((200, 100, 50), (384, 0, 640, 256))
    pixels = Preprocess.for_weights("vgg16", image_size=64)(image)
    assert pixels.amin((1, 2)).tolist() == [200, 100, 50]


def test_squash_scales_both_sides() -> None:
    """A bar in the left quarter stays in the left quarter, whatever the aspect."""
    image = Image.new("RGB", (1024, 256))
    image.paste((255, 255, 255), (0, 0, 256, 256))
    pixels = Preprocess.for_weights("vgg16", image_size=64, resize="squash")(image)
    assert pixels.shape == (3, 64, 64)
    assert pixels[:, :, :15].min() == 255
    assert pixels[:, :, 17:].max() == 0
    image = photograph(91, 47)
    pixels = Preprocess.for_weights("vgg16", image_size=64, resize="squash")(image)
    resized = F.pil_to_tensor(image.resize((64, 64), Image.Resampling.BILINEAR))
    assert (pixels.int() - resized.int()).abs().max() <= 1


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_a_box_is_scaled_to_the_whole_as_torchvisions_random_resized_crop_does(resize: str) -> None:
    image = photograph(91, 47)
    left, top, right, bottom = box = (13, 5, 70, 44)
    pixels = Preprocess.for_weights("vgg16", image_size=64, resize=resize)(image, box)
    expected = F.resized_crop(image, top, left, bottom - top, right - left, [64, 64])
    assert (pixels.int() - F.pil_to_tensor(expected).int()).abs().max() <= 1


def test_normalize_is_float32_by_the_formula_and_leaves_its_input_alone() -> None:
    preprocess = Preprocess.for_weights("vgg16")
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    before = images.clone()
    result = preprocess.normalize(images)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (before.numpy() / 255 - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    assert result.dtype == torch.float32
    assert torch.equal(images, before)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("backbone", ["vgg16", "vit_b_16"])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_survives_json(backbone: str, resize: str) -> None:
    preprocess = Preprocess.for_weights(backbone, image_size=96, resize=resize)
    text = json.dumps(preprocess.to_dict())
    assert Preprocess.from_dict(json.loads(text)) == preprocess


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": "224"}, "image_size='224'"),
        ({"resize_size": 25.6}, r"resize_size=25\.6"),
        ({"interpolation": "bilinaer"}, "Did you mean bilinear"),
        ({"antialias": 1}, "antialias=1"),
        ({"mean": [0.5, 0.5]}, "mean="),
        ({"mean": None}, "mean=None"),
        ({"std": [0.2, 0.0, 0.2]}, "above 0"),
        ({"std": [0.2, "0.2", 0.2]}, "std="),
        ({"resize": "stretch"}, "crop, squash"),
        ({"alpha": "grey"}, "white, black"),
        ({"icc": 1}, "icc=1"),
        ({"channels": "BRG"}, "unknown channels 'BRG'.* Valid: RGB, BGR"),
        ({"imagesize": 224}, "Did you mean image_size"),
    ],
)
def test_from_dict_names_what_is_wrong(change: dict[str, object], message: str) -> None:
    values = Preprocess.for_weights("vgg16").to_dict() | change
    with pytest.raises(UserError, match=message):
        Preprocess.from_dict(values)


def test_from_dict_names_what_is_missing() -> None:
    values = Preprocess.for_weights("vgg16").to_dict()
    del values["mean"], values["std"]
    with pytest.raises(UserError, match="lacks mean, std"):
        Preprocess.from_dict(values)


def test_from_dict_takes_what_was_written_before_decoding_had_options() -> None:
    values = Preprocess.for_weights("vgg16").to_dict()
    del values["alpha"], values["icc"]
    assert replace(Preprocess.from_dict(values).decoding, side=None) == Decoding()
    chosen = Preprocess.for_weights("vgg16", decoding=Decoding("black", icc=True))
    assert Preprocess.from_dict(chosen.to_dict()).decoding == Decoding("black", icc=True, side=256)


def test_from_dict_takes_what_was_written_before_channels_had_an_order() -> None:
    values = Preprocess.for_weights("vgg16", input="caffe").to_dict()
    assert Preprocess.from_dict(values).channels == "BGR"
    del values["channels"]
    assert Preprocess.from_dict(values).channels == "RGB"


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("unit", lambda x: x / 255),
        ("signed", lambda x: x / 127.5 - 1),
        ("pixels", lambda x: x),
        ("caffe", lambda x: x[:, ::-1] - np.reshape([103.939, 116.779, 123.68], (3, 1, 1))),
    ],
)
def test_inputs_are_those_of_keras(name: str, formula: Callable[..., NDArray[Any]]) -> None:
    images = torch.randint(0, 256, (2, 3, 16, 9), dtype=torch.uint8)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 255
    found = Preprocess.for_weights("vgg16", input=name).normalize(images)
    expected = formula(images.numpy().astype(float))
    np.testing.assert_allclose(found.double().numpy(), expected, atol=5e-5, rtol=0)


def test_input_changes_only_what_the_network_gets_for_a_pixel() -> None:
    own = Preprocess.for_weights("vgg16", image_size=96, resize="squash")
    for name in INPUTS:
        other = Preprocess.for_weights("vgg16", image_size=96, resize="squash", input=name)
        assert replace(other, channels="RGB", mean=own.mean, std=own.std) == own
        assert other.same_input(own) is (name == "weights")
    signed = Preprocess.for_weights("efficientnet_v2_l", input="signed")
    assert signed.same_input(Preprocess.for_weights("efficientnet_v2_l"))


def test_describe_input() -> None:
    text = "RGB from -2.118 to 2.64 (mean 0.485, 0.456, 0.406; std 0.229, 0.224, 0.225; of 0-1)"
    assert Preprocess.for_weights("vgg16").describe_input() == text
    caffe = Preprocess.for_weights("vgg16", input="caffe").describe_input()
    assert caffe.startswith("BGR from -123.7 to 151.1 (")


def test_of_a_network_without_weights() -> None:
    expected = Preprocess(150, 150, "bilinear", True, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert Preprocess.for_weights("cnn4") == expected
    assert Preprocess.for_weights("cnn4", image_size=64).resize_size == 64
    with pytest.raises(UserError, match="weights of cnn4: there are none, such as IMAGENET1K_V1"):
        Preprocess.for_weights("cnn4", "IMAGENET1K_V1")


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="unknown backbone 'vgg61'"):
        Preprocess.for_weights("vgg61")
    with pytest.raises(UserError, match="Did you mean IMAGENET1K_V1"):
        Preprocess.for_weights("vgg16", "IMAGENET1K_V2")
    with pytest.raises(UserError, match=r"unknown preprocess\.input 'cafe'\. Did you mean caffe"):
        Preprocess.for_weights("vgg16", input="cafe")
