"""Against Keras's ImageDataGenerator, on 20 photographs of solar cells (ELPV).

With what Keras itself makes where it is installed, else with what it made: Keras 3.15.1, SciPy
1.17.1, by benchmarks/keras_parity.py.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tlx.data.affine import Affine
from tlx.data.augment import AugmentParams, apply

RECORDED = dict(np.load(Path(__file__).parent / "recorded" / "keras_parity.npz"))
CVAL = 90.0
ALLOWED = 1.5  # mean absolute difference, of 255

pytestmark = pytest.mark.skipif(find_spec("elpv_dataset") is None, reason="needs elpv-dataset")
cases = pytest.mark.parametrize(
    "case",
    range(len(RECORDED["names"])),
    ids=[f"{n}-{m}" for n, m in zip(RECORDED["names"], RECORDED["fill_mode"], strict=True)],
)


@pytest.fixture(scope="module")
def photographs() -> list[NDArray[np.uint8]]:
    """20 of (300, 300, 3)."""
    import elpv_dataset

    folder = Path(elpv_dataset.__file__).parent / "data" / "images"
    files = [folder / f"cell{number:04d}.png" for number in RECORDED["numbers"]]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def given(drawn: NDArray[np.float64], fill_mode: str) -> AugmentParams:
    """What Keras drew, in tlx's words."""
    angle, x, y, shear, zoom_x, zoom_y, horizontal, vertical, channel, brightness = drawn.tolist()
    affine = Affine(
        angle=angle,
        pixels_x=x,
        pixels_y=y,
        shear=shear,
        zoom_x=zoom_x,
        zoom_y=zoom_y,
        fill_mode=fill_mode,
        cval=CVAL,
    )
    return AugmentParams(
        affine=None if affine == Affine(fill_mode=fill_mode, cval=CVAL) else affine,
        flip_horizontal=bool(horizontal),
        flip_vertical=bool(vertical),
        channel_shift=0.0 if np.isnan(channel) else channel,
        brightness=None if np.isnan(brightness) else brightness,
    )


def ours(photograph: NDArray[np.uint8], drawn: NDArray[np.float64], fill_mode: str) -> Any:
    image = torch.from_numpy(photograph.copy()).permute(2, 0, 1).contiguous()
    return apply(image[None], [given(drawn, fill_mode)])[0].permute(1, 2, 0).numpy()


def test_the_record_is_of_every_parameter_and_fill_mode() -> None:
    drawn, modes = RECORDED["drawn"], RECORDED["fill_mode"]
    assert drawn.shape == (17, 20, 10)
    assert set(modes) == {"nearest", "constant", "reflect", "wrap"}
    still = [0, 0, 0, 0, 1, 1, 0, 0, np.nan, np.nan]
    alone = {
        frozenset(np.nonzero(~np.isclose(row, still, equal_nan=True).all(0))[0]) for row in drawn
    }
    # each alone (zoom draws two numbers), and all together
    assert {frozenset(c) for c in [{0}, {1}, {2}, {3}, {4, 5}, {6}, {7}, {8}, {9}]} < alone
    assert frozenset(range(10)) in alone


@cases
def test_pictures_are_those_that_keras_made(
    case: int, photographs: list[NDArray[np.uint8]]
) -> None:
    lattice = np.ix_(RECORDED["lattice"], RECORDED["lattice"])
    for index, photograph in enumerate(photographs):
        picture = ours(photograph, RECORDED["drawn"][case, index], RECORDED["fill_mode"][case])
        expected = RECORDED["values"][case, index].astype(float)
        for channel in range(3):
            assert np.abs(picture[..., channel][lattice] - expected).mean() <= ALLOWED


@pytest.mark.skipif(find_spec("keras") is None, reason="needs keras; the record stands in for it")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras's, of SciPy's older names
@cases
def test_pictures_are_those_that_keras_makes(
    case: int, photographs: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "KERAS_BACKEND" not in os.environ:
        monkeypatch.setenv("KERAS_BACKEND", "torch")
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    mode, names = str(RECORDED["fill_mode"][case]), (
        "theta", "tx", "ty", "shear", "zx", "zy",
        "flip_horizontal", "flip_vertical", "channel_shift_intensity", "brightness",
    )  # fmt: skip
    generator = ImageDataGenerator(fill_mode=mode, cval=CVAL)
    for index, whole in enumerate(photographs):
        photograph = whole[::2, ::2]  # Keras takes 50 ms for a whole one
        drawn = RECORDED["drawn"][case, index]
        values = {n: None if np.isnan(v) else v for n, v in zip(names, drawn, strict=True)}
        expected = generator.apply_transform(photograph.astype(np.float32), values)
        assert np.abs(ours(photograph, drawn, mode) - expected).mean() <= ALLOWED
