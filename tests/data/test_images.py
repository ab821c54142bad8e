import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlx.data.images import UnreadableImage, load_rgb
from tlx.errors import UserError


def gradient(width: int = 60, height: int = 40) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    noise = np.random.default_rng(0).integers(0, 60, size=x.shape)
    return Image.fromarray(np.stack([x * 4, y * 6, 100 + noise], axis=-1).astype(np.uint8))


def test_rgb_comes_as_it_is(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    image = load_rgb(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(gradient()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    image = gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    pixels = np.asarray(image)
    # the EXIF standard: where the file's row 0 and column 0 belong in what is shown
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, k=-1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }[orientation]
    assert np.array_equal(np.asarray(load_rgb(tmp_path / "a.png")), upright)


def one_pixel(path: Path) -> tuple[int, ...]:
    image = load_rgb(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_transparency_is_on_white(tmp_path: Path) -> None:
    half = tmp_path / "half.png"
    Image.new("RGBA", (4, 4), (200, 0, 0, 128)).save(half)
    assert one_pixel(half) == (227, 127, 127)  # 255 + (200 − 255) × 128 / 255, and so on
    grey = tmp_path / "grey.png"
    Image.new("LA", (4, 4), (0, 0)).save(grey)
    assert one_pixel(grey) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "opaque.png")
    palette.save(tmp_path / "clear.png", transparency=1)
    assert one_pixel(tmp_path / "opaque.png") == (10, 20, 30)
    assert one_pixel(tmp_path / "clear.png") == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(path)
    assert np.asarray(load_rgb(path))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_grey_bilevel_and_cmyk(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    assert one_pixel(tmp_path / "grey.png") == (77, 77, 77)
    Image.new("1", (4, 4), 1).save(tmp_path / "bilevel.png")
    assert one_pixel(tmp_path / "bilevel.png") == (255, 255, 255)
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert one_pixel(tmp_path / "cmyk.tif") == (255, 0, 0)


@pytest.mark.parametrize("values", [np.float32(0.5), np.int32(70_000), np.int32(-1)])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, values: np.generic) -> None:
    Image.fromarray(np.full((4, 4), values)).save(tmp_path / "a.tiff")
    with pytest.raises(UnreadableImage, match="no known range; save it with 8 or 16 bits"):
        load_rgb(tmp_path / "a.tiff")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tiff", "webp", "ppm"])
def test_a_truncated_file_raises_or_is_whole(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    gradient().save(whole)
    data, pixels = whole.read_bytes(), np.asarray(load_rgb(whole))
    path = tmp_path / f"cut.{suffix}"
    errors = []
    for part in range(20):
        path.write_bytes(data[: len(data) * part // 20])
        try:
            image = load_rgb(path)
        except UnreadableImage as error:
            errors.append(error)
        else:  # only what follows the pixels is missing
            assert np.array_equal(np.asarray(image), pixels)
    assert len(errors) >= 18
    assert all(error.path == path and str(path) in str(error) for error in errors)


def test_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<html>404</html>")
    with pytest.raises(UnreadableImage, match=r"page\.jpg: not an image"):
        load_rgb(path)
    path.write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"page\.jpg: the file is empty"):
        load_rgb(path)
    with pytest.raises(UserError, match=r"gone\.jpg: No such file"):
        load_rgb(tmp_path / "gone.jpg")


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    gradient().save(buffer, "png")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses at twice as many
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        load_rgb(tmp_path / "a.png")
