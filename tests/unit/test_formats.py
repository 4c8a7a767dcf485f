"""Pixels decide: what the structure of a file is taken for, against files written and decoded by other means."""

import io
import itertools
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from files import encoded
from PIL import Image
from stages import accept, decode

from service.inference.errors import DecoderError, ImageError, TooManyPixelsError, UnknownFormatError
from service.inference.formats import FORMATS, read_structure

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16)]
KINDS += [(6, 8), (6, 16)]
RNG = np.random.default_rng(18)
GREY = Image.linear_gradient("L").resize((28, 28))


def chunk(name: bytes, content: bytes = b"", checksum: int | None = None) -> bytes:
    found = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", found)


def packed(samples_HWC: np.ndarray, depth: int) -> bytes:
    """Rows of samples, most significant bit first, each behind filter 0."""
    rows = b""
    for row in samples_HWC.reshape(len(samples_HWC), -1):
        bits = "".join(format(int(sample), f"0{depth}b") for sample in row)
        bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    return rows


def png(samples_HWC: np.ndarray, colour: int, depth: int, *, interlaced: bool = False, before: bytes = b"") -> bytes:
    """Write samples as a PNG file, by the book (W3C PNG, 7 to 9)."""
    height, width = samples_HWC.shape[:2]
    passes = [samples_HWC[top::down, left::right] for left, top, right, down in ADAM7] if interlaced else [samples_HWC]
    rows = b"".join(packed(one, depth) for one in passes if one.size)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + parts


def on_white(colour_HWC: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
    """Grey on white paper: ITU-R 601-2 luma of colours that are mixed with white."""
    mixed = 255 + (colour_HWC.astype(float) - 255) * alpha_HW[..., None] / 255
    return mixed @ [0.299, 0.587, 0.114]


def decoded(data: bytes) -> np.ndarray:
    return decode(accept(data, max_pixels=10**6)).pixels


def eight_bits(samples: np.ndarray, depth: int) -> np.ndarray:
    return samples >> 8 if depth == 16 else samples * (255 // (2**depth - 1))


@pytest.mark.parametrize(("size", "interlaced"), list(itertools.product([(1, 1), (7, 5), (28, 28)], [False, True])))
@pytest.mark.parametrize(("colour", "depth"), KINDS)
def test_every_kind_of_png_shows_its_samples(colour, depth, size, interlaced):
    samples = RNG.integers(0, 2**depth, (*size, CHANNELS[colour]))
    before, opaque = b"", np.full(size, 255)
    if colour == 3:
        palette = RNG.integers(0, 256, (2**depth, 3))
        alphas = RNG.integers(0, 256, 2**depth)
        before = chunk(b"PLTE", palette.astype(np.uint8).tobytes()) + chunk(b"tRNS", alphas.astype(np.uint8).tobytes())
        expected = on_white(palette[samples[..., 0]], alphas[samples[..., 0]])
    else:
        levels = eight_bits(samples, depth)
        alpha = levels[..., -1] if colour in {4, 6} else opaque
        expected = on_white(levels[..., :3] if colour in {2, 6} else levels[..., [0, 0, 0]], alpha)
    found = decoded(png(samples, colour, depth, interlaced=interlaced, before=before))
    assert np.abs(found - expected).max() <= 2  # two roundings


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "depth"), [kind for kind in KINDS if kind[0] in {0, 2}])
def test_a_transparent_level_or_colour_is_paper_at_every_depth(colour, depth, interlaced):
    samples = RNG.integers(0, 2**depth, (9, 11, CHANNELS[colour]))
    clear = samples[4, 5]
    samples[:3, :3] = clear
    if depth == 16:
        samples[5, 5] = clear ^ 1  # differs in the low byte alone: not transparent
    named = struct.pack(f">{len(clear)}H", *(int(one) | (0 if depth == 16 else 0x100) for one in clear))
    levels = eight_bits(samples, depth)
    alpha = np.where((samples == clear).all(axis=2), 0, 255)
    expected = on_white(levels if colour == 2 else levels[..., [0, 0, 0]], alpha)
    data = png(samples, colour, depth, interlaced=interlaced, before=chunk(b"tRNS", named))
    assert np.abs(decoded(data) - expected).max() <= 1
    assert "composited on white" in decode(accept(data, max_pixels=1000)).steps


@pytest.mark.parametrize("entries", [1, 2, 3, 17, 255, 256])
def test_what_a_palette_does_not_have_is_black(entries):
    palette = RNG.integers(1, 256, (entries, 3)).astype(np.uint8)
    samples = np.arange(256).reshape(16, 16, 1)
    expected = np.zeros((256, 3))
    expected[:entries] = palette
    data = png(samples, 3, 8, before=chunk(b"PLTE", palette.tobytes()))
    assert np.abs(decoded(data) - on_white(expected[samples[..., 0]], np.full((16, 16), 255))).max() <= 1


WHOLE = png(np.asarray(GREY)[..., None], 0, 8)
PALETTE = np.zeros((28, 28, 1), int)
BROKEN_PNG = {
    "no palette": png(PALETTE, 3, 8),
    "a palette of a wrong length": png(PALETTE, 3, 8, before=chunk(b"PLTE", bytes(4))),
    "an empty palette": png(PALETTE, 3, 8, before=chunk(b"PLTE")),
    "a palette that is too long": png(PALETTE, 3, 8, before=chunk(b"PLTE", bytes(3 * 257))),
    "a palette behind the pixels": png(PALETTE, 3, 8)[:-12] + chunk(b"PLTE", bytes(3)) + chunk(b"IEND"),
    "a wrong checksum of the header": WHOLE[:29] + b"abcd" + WHOLE[33:],
    "a wrong checksum of the pixels": WHOLE[:-16] + b"abcd" + WHOLE[-12:],
    "no pixels": WHOLE[:33] + chunk(b"IEND"),
    "no header": WHOLE[:8] + WHOLE[33:],
    "cut in the pixels": WHOLE[:60],
    "cut in the header": WHOLE[:20],
    "too few pixels": WHOLE[:33] + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND"),
    "pixels that can't be decompressed": WHOLE[:33] + chunk(b"IDAT", bytes(100)) + chunk(b"IEND"),
    "a chunk that is needed and not known": WHOLE[:33] + chunk(b"CgBI", bytes(4)) + WHOLE[33:],
    "a signature after a transfer as text": WHOLE.replace(b"\r\n", b"\n"),
    "a chunk without a name": WHOLE[:33] + chunk(b"\0\0\0\0") + WHOLE[33:],
    **{
        f"colour type {colour} with {depth} bits": WHOLE[:8]
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, depth, colour, 0, 0, 0))
        + WHOLE[33:]
        for colour, depth in ((1, 8), (5, 8), (7, 8), (9, 8), (0, 0), (0, 3), (0, 99), (2, 4), (3, 16), (4, 4), (6, 1))
    },
    "no width": WHOLE[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 28, 8, 0, 0, 0, 0)) + WHOLE[33:],
    "another compression": WHOLE[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 1, 0, 0)) + WHOLE[33:],
}


@pytest.mark.parametrize("name", BROKEN_PNG)
def test_a_broken_png_is_a_broken_png_with_a_reason(name):
    with pytest.raises(ImageError, match="broken") as found:
        decoded(BROKEN_PNG[name])
    assert not isinstance(found.value, UnknownFormatError | DecoderError)


def with_chunks(*others: bytes) -> bytes:
    return WHOLE[:33] + b"".join(others) + WHOLE[33:]


PASSED_OVER = {
    "EXIF without a header": chunk(b"eXIf", b"junk"),
    "EXIF whose directory lies elsewhere": chunk(b"eXIf", b"II*\0\xff\xff\0\0"),
    "EXIF that is cut": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x09\x01\x12"),
    "an empty EXIF": chunk(b"eXIf"),
    "a profile of text that is no hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 8\nzzzz"),
    "text that can't be decompressed": chunk(b"zTXt", b"x\0\0junk"),
    "international text that can't be decompressed": chunk(b"iTXt", b"x\0\1\0\0\0junk"),
    "a colour profile that can't be decompressed": chunk(b"iCCP", b"x\0\0junk"),
    "a wrong checksum of text": chunk(b"tEXt", b"a\0b", checksum=1),
    "a wrong checksum of a time": chunk(b"tIME", bytes(7), checksum=1),
    "a transparency of a wrong length": chunk(b"tRNS", b"\0"),
}


@pytest.mark.parametrize("name", PASSED_OVER)
def test_damaged_metadata_is_ignored_with_a_warning(name):
    grey = decode(accept(with_chunks(PASSED_OVER[name]), max_pixels=1000))
    assert np.array_equal(grey.pixels, np.asarray(GREY))
    assert [warning.partition(":")[0] for warning in grey.warnings] == ["damaged metadata were ignored"]


@pytest.mark.parametrize(
    "others", [[], [chunk(b"tEXt", b"a")], [chunk(b"gAMA")], [chunk(b"abCd", bytes(9))], [chunk(b"iTXt", b"\0")]]
)
def test_metadata_that_nobody_needs_bring_no_warning(others):
    grey = decode(accept(with_chunks(*others), max_pixels=1000))
    assert np.array_equal(grey.pixels, np.asarray(GREY))
    assert grey.warnings == ()


def test_what_ends_a_file_may_be_missing():
    for end in (len(WHOLE) - 12, len(WHOLE) - 5):
        assert np.array_equal(decoded(WHOLE[:end]), np.asarray(GREY))
    assert np.array_equal(decoded(WHOLE + b"more"), np.asarray(GREY))


def exif(orientation: int, order: str, kind: int = 3) -> bytes:
    """A TIFF header with one tag."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I"}[kind], orientation)
    return start + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


@pytest.mark.parametrize(("order", "kind"), list(itertools.product("<>", [1, 3, 4])))
@pytest.mark.parametrize("file", FORMATS)
def test_the_orientation_counts_in_every_format(file, order, kind):
    picture = Image.fromarray(np.triu(np.full((28, 28), 200, np.uint8)))
    turned = {}
    for orientation in range(10):
        content = exif(orientation, order, kind)
        if file == "JPEG":
            plain = encoded(picture, file, quality=95, dpi=(72, 72))
            segment = b"Exif\0\0" + content
            data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
        else:
            data = encoded(picture.convert("RGB"), file, exif=content, lossless=True)
        turned[orientation] = decoded(data)
    upright = turned[1]
    for orientation, pixels in turned.items():
        expected = {
            2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
            6: upright.T[:, ::-1], 7: upright[::-1, ::-1].T, 8: upright.T[::-1],
        }.get(orientation, upright)  # fmt: skip
        assert np.array_equal(pixels, expected), orientation


def jpeg_with(*segments: bytes, **options: object) -> bytes:
    data = encoded(GREY, "JPEG", **options)
    return data[:2] + b"".join(segments) + data[2:]


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize(
    "others",
    [
        [segment(0xE1, b"Exif\0\0XX*\0")], [segment(0xE1, b"Exif\0\0")], [segment(0xE2, b"MPF\0junk")],
        [segment(0xED, b"Photoshop 3.0\08BIM\xff\xff\xff")], [segment(0xE0, b"JFIF")], [segment(0xFE, b"\xff\xd9")],
        [segment(0xFE, b"x"), b"junk"], [b"\xff\xff\xff"], [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<")],
        [segment(0xE2, b"ICC_PROFILE\0")],
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"dpi": (72, 72)}, {"progressive": True}])
def test_what_a_jpeg_holds_beside_its_pixels_does_not_matter(others, options):
    expected = np.asarray(Image.open(io.BytesIO(encoded(GREY, "JPEG", **options))))
    assert np.array_equal(decoded(jpeg_with(*others, **options)), expected)


def test_many_bad_tags_leave_nothing_behind(capsys):
    """Distinct ones would each fill Python's registry of warnings, and a line of standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for tag in range(500):
            entries = struct.pack("<HHHII", 1, tag, 7, 2**31, tag)
            for data in (
                jpeg_with(segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + entries)),
                with_chunks(chunk(b"eXIf", b"II*\0\x08\0\0\0" + entries)),
            ):
                decoded(data)
    registries = [vars(module).get("__warningregistry__", {}) for module in list(sys.modules.values())]
    assert not caught
    assert max(map(len, registries)) < 100
    assert capsys.readouterr().err == ""


def test_multi_picture_file_has_format_of_first_picture():
    file = io.BytesIO()
    GREY.save(file, "MPO", save_all=True, append_images=[GREY])
    grey = decode(accept(file.getvalue(), max_pixels=1000))
    assert (grey.source, grey.warnings) == ("JPEG", ("only the first of 2 frames was used",))


@pytest.mark.parametrize(
    "data", [b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JFIF"]
)
def test_truncated_file_is_a_broken_file(data):
    with pytest.raises(ImageError, match="broken") as found:
        read_structure(data)
    assert not isinstance(found.value, UnknownFormatError)


def test_what_is_more_to_decode_counts_more():
    def cost(data: bytes) -> float:
        found = read_structure(data)
        return found.cost / (found.width * found.height)

    zeros = np.zeros((30, 30, 4), int)
    costs = {kind: cost(png(zeros[..., : CHANNELS[kind[0]]], *kind)) for kind in KINDS if kind[0] != 3}
    assert all(costs[kind] == 1 for kind in ((0, 1), (0, 8), (0, 16), (2, 8), (4, 8)))
    assert costs[6, 8] < costs[2, 16] < costs[6, 16]
    assert cost(encoded(GREY, "WEBP")) == 2
    assert cost(encoded(GREY, "JPEG")) == cost(encoded(GREY, "JPEG", progressive=True)) == 1


def test_limits_are_those_that_are_given():
    square, long = encoded(Image.new("L", (500, 500))), encoded(Image.new("L", (500, 1)))
    assert accept(square, max_pixels=250_000).cost == 250_000
    with pytest.raises(TooManyPixelsError, match="500 x 500 pixels, more than 249999"):
        accept(square, max_pixels=249_999)
    with pytest.raises(ImageError, match="a side may be 499 times as long"):
        accept(long, max_pixels=1000, max_aspect_ratio=499)
    assert accept(long, max_pixels=1000, max_aspect_ratio=500).cost == 500
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    large = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT") + chunk(b"IEND")
    assert accept(large, max_pixels=400_000_000).cost == 400_000_000  # Pillow has no limit beside ours


@pytest.mark.parametrize("raised", [AssertionError, RuntimeError, RecursionError, NotImplementedError, KeyError])
def test_any_decoder_exception_is_an_image_error(monkeypatch, raised):
    def fail(*_: object, **__: object) -> None:
        raise raised("inside")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match="broken"):
        decoded(encoded(GREY.convert("RGB")))


def test_lack_of_memory_is_too_many_pixels(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(TooManyPixelsError, match="more memory than is available"):
        decoded(encoded(GREY.convert("RGB")))


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("size", [(3, 7), (8, 5), (301, 2), (2, 301)])
def test_the_size_of_a_webp_is_that_of_its_pixels(size, lossless):
    structure = read_structure(encoded(Image.new("RGB", size, "red"), "WEBP", lossless=lossless))
    assert (structure.width, structure.height) == size
