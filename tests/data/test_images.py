import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from tlx.data.images import MAX_PIXELS, Decoding, UnreadableImage, decode_rgb, load_rgb
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


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header says it is large."""
    data = bytearray(encoded(gradient(), "png"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("size", [(MAX_PIXELS // 5 + 1, 5), (20_000, 20_000), (2**31 - 1, 2)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImage, match=r"more than 89,478,485 pixels"):
        decode_rgb(bomb(*size), Path("a.png"))


@pytest.mark.parametrize("suffix", ["tiff", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_other_formats(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (60, 40), "white")
    image.paste("red", (0, 0, 30, 20))  # top left as stored
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    pixels = np.asarray(load_rgb(tmp_path / f"a.{suffix}")).astype(int)
    assert pixels.shape == ((60, 40, 3) if orientation > 4 else (40, 60, 3))
    height, width = pixels.shape[:2]
    corners = [pixels[8, 8], pixels[8, width - 8], pixels[height - 8, width - 8]]
    corners.append(pixels[height - 8, 8])  # clockwise from top left
    red = [bool(abs(corner - (255, 0, 0)).max() < 60) for corner in corners]
    assert red.index(True) == {1: 0, 2: 1, 3: 2, 4: 3, 5: 0, 6: 1, 7: 2, 8: 3}[orientation]
    assert sum(red) == 1


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_exif_does_not_matter() -> None:
    data = encoded(gradient(), "png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f\1\2\3")
    assert np.array_equal(np.asarray(decode_rgb(data, Path("a.png"))), np.asarray(gradient()))


def test_transparency_by_arithmetic() -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, size=(16, 256, 4)).astype(np.uint8)
    data = encoded(Image.fromarray(pixels), "png")
    colour, alpha = pixels[..., :3].astype(float), pixels[..., 3:] / 255
    for below, value in (("white", 255), ("black", 0)):
        found = np.asarray(decode_rgb(data, Path("a.png"), Decoding(alpha=below)))
        expected = colour * alpha + value * (1 - alpha)
        assert np.abs(found - expected).max() <= 0.51


def test_cmyk_by_arithmetic() -> None:
    """Inks in TIFF, and the inverted values that Adobe's JPEGs hold (APP14)."""
    inks = np.random.default_rng(0).integers(0, 256, size=(8, 8, 4)).astype(np.uint8)
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    found = decode_rgb(encoded(Image.fromarray(inks, "CMYK"), "tiff"), Path("a.tif"))
    assert np.abs(np.asarray(found) - expected).max() <= 1
    flat = Image.new("CMYK", (16, 16), (200, 40, 0, 30))
    data = encoded(flat, "jpeg", quality=100)
    assert b"Adobe" in data
    assert np.abs(np.asarray(decode_rgb(data, Path("a.jpg"))) - [49, 190, 225]).max() <= 2


def test_sixteen_bit_colour_keeps_its_upper_bits() -> None:
    values = np.random.default_rng(0).integers(0, 65536, size=(7, 5, 3)).astype(">u2")
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 5, 7, 16, 2, 0, 0, 0)), (b"IDAT", body)]
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(content)) + name + content
        data += struct.pack(">I", zlib.crc32(name + content))
    assert np.array_equal(np.asarray(decode_rgb(data, Path("a.png"))), values >> 8)


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_counts(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    data = encoded(first, kind, save_all=True, append_images=[second])
    pixels = np.asarray(decode_rgb(data, Path("a"))).astype(int)
    assert np.abs(pixels - (255, 0, 0)).max() <= 2


def test_the_name_does_not_decide_but_for_tga(tmp_path: Path) -> None:
    assert decode_rgb(encoded(gradient(), "png"), Path("a.jpg")).size == (60, 40)
    data = encoded(gradient(), "tga")
    assert np.array_equal(np.asarray(decode_rgb(data, Path("A.TGA"))), np.asarray(gradient()))
    with pytest.raises(UnreadableImage, match="not an image"):
        decode_rgb(data, Path("a.png"))
    with pytest.raises(UnreadableImage, match="not an image"):  # Ghostscript would have to run
        decode_rgb(encoded(gradient(), "eps"), Path("a.jpg"))


def test_colours_by_the_profile() -> None:
    """A profile whose red and blue are exchanged, and whose curve is sRGB's."""
    swapped = srgb_profile().replace(b"rXYZ", b"tmp_").replace(b"bXYZ", b"rXYZ")
    swapped = swapped.replace(b"tmp_", b"bXYZ")
    image = Image.new("RGB", (4, 4), (200, 40, 90))
    for kind in ("png", "tiff"):
        data = encoded(image, kind, icc_profile=swapped)
        assert decode_rgb(data, Path("a")).getpixel((0, 0)) == (200, 40, 90)
        found = decode_rgb(data, Path("a"), Decoding(icc=True)).getpixel((0, 0))
        assert np.abs(np.subtract(found, (90, 40, 200))).max() <= 2
    image.putalpha(0)
    data = encoded(image, "png", icc_profile=swapped)
    assert decode_rgb(data, Path("a"), Decoding(icc=True)).getpixel((0, 0)) == (255, 255, 255)


def test_profiles_that_do_not_fit_or_are_broken() -> None:
    grey = encoded(Image.new("L", (4, 4), 77), "png", icc_profile=srgb_profile())
    found = decode_rgb(grey, Path("a"), Decoding(icc=True)).getpixel((0, 0))
    assert np.abs(np.subtract(found, 77)).max() <= 1
    broken = encoded(Image.new("RGB", (4, 4)), "png", icc_profile=b"no profile")
    assert decode_rgb(broken, Path("a")).size == (4, 4)
    with pytest.raises(UnreadableImage, match=r"ICC profile is broken .* data\.icc=false"):
        decode_rgb(broken, Path("a"), Decoding(icc=True))


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("options", [{}, {"quality": 95}, {"subsampling": 0}])
def test_a_jpeg_that_ends_early_is_named(options: dict[str, int]) -> None:
    """libjpeg fills the rest with grey, without an error, when the end marker is there."""
    data = encoded(gradient(300, 200), "jpeg", **options)
    with pytest.raises(UnreadableImage, match="less than the whole picture"):
        decode_rgb(data[: len(data) // 2] + b"\xff\xd9", Path("a.jpg"))
    grey = encoded(Image.new("RGB", (300, 200), (128, 128, 128)), "jpeg", **options)
    assert decode_rgb(grey, Path("a.jpg")).getextrema() == ((128, 128),) * 3


def test_a_png_is_checked_to_the_end() -> None:
    low, high = encoded(gradient(60, 40), "png"), encoded(gradient(60, 80), "png")
    with pytest.raises(UnreadableImage, match="less than the whole picture"):
        decode_rgb(high[:33] + low[33:], Path("a.png"))  # Pillow: black from row 40 on
    black = encoded(Image.new("RGB", (60, 40)), "png")
    assert decode_rgb(black, Path("a.png")).getextrema() == ((0, 0),) * 3
    changed = bytearray(low)
    changed[low.index(b"IDAT") - 4 + len(low) // 2] ^= 1
    with pytest.raises(UnreadableImage):
        decode_rgb(bytes(changed), Path("a.png"))


def test_a_tiff_without_all_its_strips_is_named() -> None:
    data = bytearray(encoded(gradient(300, 200), "tiff"))
    (start,) = struct.unpack_from("<I", data, 4)
    entries = range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12)
    height = next(e for e in entries if struct.unpack_from("<H", data, e)[0] == 257)
    struct.pack_into("<I", data, height + 8, 800)
    with pytest.raises(UnreadableImage, match="less than the whole picture"):
        decode_rgb(bytes(data), Path("a.tiff"))  # Pillow: black from row 200 on


def test_another_library_cannot_switch_truncation_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(gradient(), "jpeg")
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_rgb(data[:-100], Path("a.jpg"))


def test_the_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage(Path("a.png"), "broken")))
    assert (error.path, error.reason) == (Path("a.png"), "broken")
