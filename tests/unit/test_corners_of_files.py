"""Image files at the edge of their formats."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from stages import accept, decode

from model.input_spec import FASHION_MNIST
from service.inference.arrays import read_npy_shape
from service.inference.errors import ImageError, UnknownFormatError
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
        assert FASHION_MNIST.count(read_npy_shape(io.BytesIO(data), FASHION_MNIST)) == 3
    else:
        with pytest.raises(ValueError, match=r"version \(\d, \d\) of the format is not supported"):
            read_npy_shape(io.BytesIO(data), FASHION_MNIST)


def png_header(width=5, height=4, depth=8, colour=0, compression=0, filters=0, interlace=0) -> bytes:
    content = struct.pack(">IIBBBBB", width, height, depth, colour, compression, filters, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", content)


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize(
    ("field", "value", "defined"),
    [
        *(("width", 0, False), ("width", 1, True), ("width", 2**31 - 1, True), ("width", 2**31, False)),
        *(("height", 0, False), ("height", 1, True), ("height", 2**31 - 1, True), ("height", 2**31, False)),
        *(("compression", 1, False), ("filters", 1, False), ("interlace", 1, True), ("interlace", 2, False)),
    ],
)
def test_values_of_a_png_header_have_bounds(field, value, defined):
    data = png_header(**{field: value}) + chunk(b"IDAT", b"pixels")
    if defined:
        read_structure(data)
    else:
        with pytest.raises(ImageError, match="values that are not defined"):
            read_structure(data)


@pytest.mark.parametrize(
    ("colour", "depth", "transparency", "cost"),
    [(2, 16, bytes(6), 4), (2, 16, b"", 2), (2, 16, bytes(5), 2), (2, 8, bytes(6), 1), (0, 16, bytes(2), 1)],
)
def test_a_transparent_colour_doubles_the_cost_of_16_bits(colour, depth, transparency, cost):
    parts = (chunk(b"tRNS", transparency) if transparency else b"") + chunk(b"IDAT", b"pixels")
    structure = read_structure(png_header(6, 5, depth, colour) + parts)
    assert structure.cost == cost * 30
    assert (structure.transparent is None) == (len(transparency) not in {2, 6})


@pytest.mark.parametrize("damaged", range(5))
def test_a_warning_lists_three_damaged_parts(damaged):
    names = [b"gAMA", b"tIME", b"hIST", b"sBIT"][:damaged]
    wrong = b"".join(chunk(name, b"content")[:-4] + bytes(4) for name in names)
    structure = read_structure(png_header() + wrong + chunk(b"IDAT", b"pixels"))
    listed = ", ".join(name.decode() for name in names[:3]) + " and more" * (damaged > 3)
    assert structure.warnings == ((f"damaged metadata were ignored: {listed}",) if damaged else ())


@pytest.mark.parametrize(("scans", "cost"), [(1, 240), (20, 240), (21, 252), (40, 480), (100, 1200)])
def test_a_jpeg_costs_more_from_21_scans_on(scans, cost):
    assert read_structure(jpeg_of_scans(scans)).cost == cost


def test_a_jpeg_has_at_most_100_scans():
    with pytest.raises(ImageError, match="has 101 scans; at most 100"):
        read_structure(jpeg_of_scans(101))


def jpeg_of_scans(scans: int) -> bytes:
    """A file of 20 x 12 pixels and three components."""
    frame = segment(0xC0, struct.pack(">BHHB", 8, 12, 20, 3) + bytes(9))
    return b"\xff\xd8" + frame + scans * (segment(0xDA, bytes(10)) + b"coded") + b"\xff\xd9"


@pytest.mark.parametrize("frames", range(4))
def test_an_empty_last_chunk_of_webp_is_a_frame(frames):
    canvas = struct.pack("<4sI", b"VP8X", 10) + bytes(4) + (4).to_bytes(3, "little") + (2).to_bytes(3, "little")
    structure = read_structure(b"RIFF\0\0\0\0WEBP" + canvas + frames * struct.pack("<4sI", b"ANMF", 0))
    assert (structure.width, structure.height, structure.frames) == (5, 3, max(frames, 1))


@pytest.mark.parametrize(
    ("marker", "content", "orientation"),
    [
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + ORIENTED, 6),
        (0xE1, b"something else\0" + ORIENTED, 1),
        (0xFE, b"http://ns.adobe.com/xap/1.0/\0" + ORIENTED, 1),
    ],
)
def test_xmp_of_a_jpeg_has_marker_and_name(marker, content, orientation):
    data = jpeg()
    assert read_structure(data[:2] + segment(marker, content) + data[2:]).orientation == orientation


def test_a_second_start_of_image_is_skipped():
    data = jpeg()
    assert read_structure(data[:2] + b"\xff\xd8" + data[2:]).data == read_structure(data).data


def tiff(tag: int, value: int) -> bytes:
    return struct.pack("<4sIHHHII", b"II*\0", 8, 1, tag, 4, 1, value) + bytes(4)


@pytest.mark.parametrize(("pictures", "frames"), [(0, 1), (1, 1), (3, 3)])
def test_a_list_of_pictures_gives_their_number(pictures, frames):
    data = jpeg()
    assert read_structure(data[:2] + segment(0xE2, b"MPF\0" + tiff(0xB001, pictures)) + data[2:]).frames == frames


def test_other_content_of_its_segment_is_no_list_of_pictures():
    data = jpeg()
    assert read_structure(data[:2] + segment(0xE2, b"FPXR" + tiff(0xB001, 3)) + data[2:]).frames == 1
    assert read_structure(data[:2] + segment(0xE5, b"MPF\0" + tiff(0xB001, 3)) + data[2:]).frames == 1


@pytest.mark.parametrize("width", [2, 26, 1000])
def test_exif_in_text_is_read_from_the_fourth_line(width):
    digits = tiff(0x0112, 6).hex()
    lines = "\n".join(digits[first : first + width] for first in range(0, len(digits), width))
    content = b"Raw profile type exif\0\nexif\n      30\n" + lines.encode()
    assert read_structure(png_with(b"tEXt", content)).orientation == 6


@pytest.mark.parametrize(("controls", "frames"), [(0, 4), (1, 3), (2, 3)])
def test_a_default_image_without_control_is_one_more_frame(controls, frames):
    animation = chunk(b"acTL", struct.pack(">II", 3, 0)) + controls * chunk(b"fcTL", bytes(26))
    assert read_structure(png_header() + animation + chunk(b"IDAT", b"pixels")).frames == frames


def test_an_animation_of_one_image_has_one_frame():
    animation = chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(b"fcTL", bytes(26))
    assert read_structure(png_header() + animation + chunk(b"IDAT", b"pixels")).frames == 1


@pytest.mark.parametrize("data", [b"RIFF\0\0\0\0WAVEfmt ", b"RIFX\0\0\0\0WEBPVP8 "])
def test_half_a_signature_of_webp_is_an_unknown_format(data):
    with pytest.raises(UnknownFormatError):
        read_structure(data)


@pytest.mark.parametrize("names", [(b"zTXt",), (b"zTXt", b"iCCP"), (b"iTXt", b"zTXt", b"iTXt")])
def test_all_metadata_inflate_to_at_most_8_mib(names):
    def file(size: int) -> bytes:
        sizes = [size // len(names)] * (len(names) - 1)
        parts = [bytes(one) for one in (*sizes, size - sum(sizes))]
        starts = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}
        texts = b"".join(
            chunk(name, starts[name] + zlib.compress(part)) for name, part in zip(names, parts, strict=True)
        )
        return png_header() + texts + chunk(b"IDAT", b"pixels")

    assert read_structure(file(2**23)).warnings == ()
    with pytest.raises(ImageError, match="inflate to more than 8388608 bytes"):
        read_structure(file(2**23 + 1))


def test_a_webp_chunk_ends_where_its_length_says():
    canvas = struct.pack("<4sI", b"VP8X", 10) + bytes(4) + bytes(3) + bytes(3)
    others = struct.pack("<4sI", b"XMP ", 2) + b"ab" + struct.pack("<4sI", b"none", len(ORIENTED)) + ORIENTED
    assert read_structure(b"RIFF\0\0\0\0WEBP" + canvas + others).orientation == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode):
    file = io.BytesIO()
    Image.new(mode, (6, 5)).save(file, "PNG")
    assert (decode(accept(file.getvalue(), max_pixels=100)).pixels == 255).all()
