"""Image files at the edge of their formats."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from service.inference.arrays import read_npy_header
from service.inference.errors import ImageError
from service.inference.formats import read_structure

ORIENTED = b'<x tiff:Orientation="6"/>'


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg(mode: str = "L", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (12, 10), 100 if mode == "L" else None).save(file, "JPEG", **options)
    return file.getvalue()


def png_with(name: bytes, content: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("L", (5, 4), 9).save(file, "PNG")
    data, chunk = file.getvalue(), name + content
    return data[:33] + struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


@pytest.mark.parametrize(
    ("missing", "why"), [(0, "no frame header"), (1, "within its header"), (3, "within its header")]
)
def test_a_jpeg_segment_must_be_whole(missing, why):
    data = b"\xff\xd8" + segment(0xE1, bytes(8))
    with pytest.raises(ImageError, match=why):
        read_structure(data[: len(data) - missing])


@pytest.mark.parametrize(("mode", "marker", "name"), [("L", 0xE0, b"JFIF\0"), ("CMYK", 0xEE, b"Adobe")])
def test_what_tells_the_colours_of_a_jpeg_is_kept(mode, marker, name):
    data = jpeg(mode)
    assert (
        struct.pack("BB", 0xFF, marker) + data.split(struct.pack("BB", 0xFF, marker))[1][:7]
        in read_structure(data).data
    )
    assert name in read_structure(data).data
    assert b"a comment" not in read_structure(jpeg(mode, comment=b"a comment")).data


@pytest.mark.parametrize("content", [b"", b"II*\0", b"nothing of a kind", b"II*\0\x08\0\0\0\0\0"])
def test_a_damaged_list_of_pictures_means_one(content):
    data = jpeg()
    assert read_structure(data[:2] + segment(0xE2, b"MPF\0" + content) + data[2:]).frames == 1


@pytest.mark.parametrize(
    ("flag", "text", "orientation"),
    [(0, ORIENTED, 6), (1, zlib.compress(ORIENTED), 6), (2, ORIENTED, 6), (0, zlib.compress(ORIENTED), 1)],
)
def test_only_a_flag_of_1_means_compressed_text(flag, text, orientation):
    content = b"XML:com.adobe.xmp\0" + bytes([flag, 0]) + b"\0\0" + text
    assert read_structure(png_with(b"iTXt", content)).orientation == orientation


@pytest.mark.parametrize(("version", "known"), [((1, 0), True), ((2, 0), True), ((2, 1), False), ((3, 0), False)])
def test_versions_1_0_and_2_0_of_npy_are_known(version, known):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.zeros((3, 28, 28), np.uint8), version=(2, 0) if version[0] > 1 else (1, 0))
    data = bytearray(file.getvalue())
    data[6:8] = bytes(version)
    if known:
        assert read_npy_header(io.BytesIO(data)) == 3
    else:
        with pytest.raises(ValueError, match=r"version \(\d, \d\) of the format is not supported"):
            read_npy_header(io.BytesIO(data))
