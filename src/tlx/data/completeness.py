"""Whether all of a picture came out of its file, for formats where Pillow's decoder does not ask.

Its PNG and TIFF decoders leave black what no data came for, its JPEG decoder mid-grey, and PNG's
checksums go unread. What nobody can see: other pixels in files without checksums.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageChops

# Entropy-coded data ends at a marker that is neither a stuffed 0xFF nor a restart.
SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def check_complete(image: Image.Image, data: bytes) -> None:
    """Raises ValueError when pixels of the loaded image, as Pillow decoded it, were made up."""
    if image.format == "PNG":
        whole = _png_is_whole(image, data)
    elif image.format == "TIFF":
        whole = _tiff_is_whole(image)
    elif image.format in ("JPEG", "MPO"):
        whole = not _ends_mid_grey(image) or _jpeg_is_whole(data)
    else:
        whole = True
    if not whole:
        raise ValueError("the file holds less than the whole picture")


def _last_row_is_zero(image: Image.Image) -> bool:
    row = image.crop((0, image.height - 1, image.width, image.height))
    return row.getbbox(alpha_only=False) is None


def _png_is_whole(image: Image.Image, data: bytes) -> bool:
    """Whether the compressed data are unchanged, and make as many bytes as the size takes."""
    chunks = list(_png_data(data))
    if not (_last_row_is_zero(image) or image.info.get("interlace")):
        return True  # Pillow's decoder got to the end
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    passes = [(width, height)]
    if interlaced:
        passes = [
            (-(-(width - x) // dx), -(-(height - y) // dy))
            for x, y, dx, dy in (*ADAM7, (0, 1, 1, 2))
        ]
    pixel = bits * PNG_CHANNELS[colour]
    expected = sum(h * (1 + (w * pixel + 7) // 8) for w, h in passes if w > 0 and h > 0)
    inflate, found = zlib.decompressobj(), 0
    for body in chunks:
        found += len(inflate.decompress(body, max(expected - found, 1)))
    return bool(found >= expected)


def _png_data(data: bytes) -> Iterator[bytes]:
    place = 8
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if data[place + 4 : place + 8] == b"IDAT":
            end = place + 8 + length
            if zlib.crc32(data[place + 4 : end]).to_bytes(4, "big") != data[end : end + 4]:
                raise ValueError("a checksum in the file does not match")
            yield data[place + 8 : end]
        place += length + 12


def _tiff_is_whole(image: Image.Image) -> bool:
    """Whether there are as many strips, or tiles, as the size takes."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    width, height = tags[256], tags[257]
    if 324 in tags:  # TileOffsets
        parts, needed = tags[324], -(-width // tags[322]) * -(-height // tags[323])
    else:
        parts, needed = tags[273], -(-height // min(tags.get(278, height), height))
    planes = tags.get(277, 1) if tags.get(284) == 2 else 1
    return bool(len(parts) == needed * planes)


def _ends_mid_grey(image: Image.Image) -> bool:
    last = image.getpixel((image.width - 1, image.height - 1))
    values = last if isinstance(last, tuple) else (last,)
    return all(value in (127, 128) for value in values)  # 127: of inverted CMYK


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether more data at the end of each scan change nothing, so that none were missing."""
    padded, done = bytearray(), 0
    for end in _scan_ends(data):
        padded += data[done:end] + bytes(range(1, 128)) * 8
        done = end
    padded += data[done:]
    own, other = (Image.open(io.BytesIO(d), formats=["JPEG"]) for d in (data, padded))
    return ImageChops.difference(own.convert("RGB"), other.convert("RGB")).getbbox() is None


def _scan_ends(data: bytes) -> Iterator[int]:
    place = 2
    while (start := data.find(b"\xff", place)) >= 0 and start + 4 <= len(data):
        marker = data[start + 1]
        if marker == 0xFF:
            place = start + 1
            continue
        if marker == 0xD9:
            return
        place = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker == 0xDA:
            found = SCAN_END.search(data, place)
            if found is None:
                return
            place = found.start()
            yield place
