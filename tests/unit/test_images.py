import io
import struct
import zlib

import numpy as np
import pytest
from files import encoded
from PIL import Image, ImageOps
from stages import accept, prepare
from stages import decode as decode_upload

from model.input_spec import FASHION_MNIST
from service.inference.arrays import pixels_of_array
from service.inference.errors import ImageError, TooManyPixelsError, UnknownFormatError
from service.inference.formats import FORMATS
from service.inference.general_decoder import Decoded
from service.inference.preparation import Input, Invert

MAX_PIXELS = 1_000_000


@pytest.fixture
def garment():
    """A bright shape of odd outline on black, touching top and bottom as Fashion-MNIST's do."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[0:28, 8:18] = 200
    pixels[10:20, 4:24] = 120
    return pixels


def decode(data: bytes, invert: Invert = Invert.AUTO) -> Input:
    return prepare(decode_upload(accept(data, max_pixels=MAX_PIXELS)), invert=invert)


def photo(pixels: np.ndarray, width: int = 300, height: int = 400) -> Image.Image:
    """The garment dark on white paper, off the middle."""
    side = width * 2 // 3
    paper = Image.new("RGB", (width, height), "white")
    paper.paste(Image.fromarray(255 - pixels).resize((side, side), Image.Resampling.BICUBIC), (width // 5, height // 3))
    return paper


def assert_similar(one: np.ndarray, other: np.ndarray) -> None:
    assert np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1] > 0.97


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_lossless_28_by_28_grey_image_keeps_every_pixel(garment, kind):
    prepared = decode(encoded(Image.fromarray(garment), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(prepared.pixels, garment)
    assert (prepared.source, prepared.size, prepared.inverted) == (kind, (28, 28), False)
    assert prepared.warnings == ()


@pytest.mark.parametrize("kind", FORMATS)
def test_photograph_is_prepared_as_in_the_data_set(garment, kind):
    prepared = decode(encoded(photo(garment), kind))
    columns = np.flatnonzero((garment > 0).any(axis=0))
    centred = np.roll(garment, 14 - (columns[0] + columns[-1] + 1) // 2, axis=1)
    assert_similar(prepared.pixels, centred)
    assert prepared.steps == ("greyscale", "inverted", "trimmed", "padded", "resized")
    assert prepared.size == (300, 400)


def test_the_aspect_is_kept():
    wide = np.zeros((50, 200), np.uint8)
    wide[10:30, 10:190] = 255
    rows = np.flatnonzero((prepare(Decoded(wide, "PNG")).pixels > 127).any(axis=1))
    assert len(rows) == pytest.approx(28 * 20 / 180, abs=1)


def test_only_dark_on_light_images_are_inverted(garment):
    as_is, turned = prepare(Decoded(garment, "PNG")), prepare(Decoded(255 - garment, "PNG"))
    assert not as_is.inverted
    assert turned.inverted
    assert np.array_equal(as_is.pixels, turned.pixels)


def test_polarity_can_be_said(garment):
    assert np.array_equal(prepare(Decoded(garment, "PNG"), invert=Invert.YES).pixels, 255 - garment)
    assert np.array_equal(prepare(Decoded(255 - garment, "PNG"), invert=Invert.NO).pixels, 255 - garment)


def test_polarity_of_every_test_image_is_found(fashion):
    for pixels in fashion.test.images_B.numpy():
        assert not prepare(Decoded(pixels, "array")).inverted
        assert np.array_equal(prepare(Decoded(255 - pixels, "array")).pixels, pixels)


def test_a_border_between_dark_and_light_is_warned_of():
    grey = np.full((28, 28), 130, np.uint8)
    grey[8:20, 8:20] = 255
    assert any("neither dark nor light" in warning for warning in prepare(Decoded(grey, "PNG")).warnings)
    assert not any("neither" in warning for warning in prepare(Decoded(grey, "PNG"), invert=Invert.NO).warnings)


def test_a_blank_image_and_a_busy_background_are_warned_of():
    assert any("blank" in warning for warning in prepare(Decoded(np.zeros((40, 40), np.uint8), "PNG")).warnings)
    noise = np.random.default_rng(3).integers(0, 256, (60, 60)).astype(np.uint8)
    assert any("not plain" in warning for warning in prepare(Decoded(noise, "PNG")).warnings)


def test_transparent_pixels_become_white_paper(garment):
    alpha = Image.fromarray(np.where(garment > 0, 255, 0).astype(np.uint8))
    cut_out = Image.merge("LA", (Image.fromarray(255 - garment), alpha))
    prepared = decode(encoded(cut_out))
    assert prepared.steps == ("composited on white", "greyscale", "inverted")
    assert np.array_equal(prepared.pixels, garment)


def test_an_opaque_alpha_channel_changes_nothing(garment):
    rgba = Image.fromarray(garment).convert("RGBA")
    assert np.array_equal(decode(encoded(rgba)).pixels, garment)


def test_a_palette_with_transparency_is_composited():
    image = Image.new("P", (28, 28), 0)
    image.putpalette([0, 0, 0, 255, 255, 255])
    prepared = decode(encoded(image, transparency=0))
    assert "composited on white" in prepared.steps
    assert prepared.inverted


def test_sixteen_bits_are_scaled_not_clipped(garment):
    wide = Image.fromarray(garment.astype(np.uint16) * 257)
    prepared = decode(encoded(wide))
    assert np.array_equal(prepared.pixels, garment)
    assert prepared.steps == ("reduced to 8 bits",)


def test_one_bit_and_colour_images_are_read(garment):
    mask = garment > 0
    assert np.array_equal(decode(encoded(Image.fromarray(mask))).pixels, mask * np.uint8(255))
    assert np.array_equal(decode(encoded(Image.fromarray(garment).convert("RGB"))).pixels, garment)
    assert decode(encoded(photo(garment).convert("CMYK"), "JPEG")).inverted


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_exif_is_applied(garment, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.triu(garment)), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data).pixels, np.asarray(expected))


def test_only_the_first_frame_counts_and_that_is_said(garment):
    first, second = Image.fromarray(garment), Image.fromarray(255 - garment)
    prepared = decode(encoded(first, "PNG", save_all=True, append_images=[second]))
    assert np.array_equal(prepared.pixels, garment)
    assert prepared.warnings[0] == "only the first of 2 frames was used"


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (28, 29), (27, 27), (2, 3)])
def test_any_size_becomes_28_by_28(size):
    pixels = decode(encoded(Image.new("L", size, 90))).pixels
    assert pixels.shape == (28, 28)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_by_name_of_what_is_taken(kind):
    data = encoded(Image.new("L", (28, 28)), kind)
    with pytest.raises(UnknownFormatError, match="must be a PNG, JPEG or WEBP file"):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"hello", b"\xff\xd8\xff", b"%PDF-1.4", b"<svg/>", bytes(1000)])
def test_invalid_image_is_refused(data):
    with pytest.raises(ImageError):
        decode(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_truncation_is_an_image_error_or_a_picture(garment, kind):
    data = encoded(photo(garment, 60, 80), kind)
    for end in range(0, len(data) - 1, 7):
        try:
            pixels = decode(data[:end]).pixels
        except ImageError:
            continue
        assert pixels.shape == (28, 28)


@pytest.mark.parametrize("kind", FORMATS)
def test_random_damage_is_an_image_error_or_a_picture(garment, kind):
    data = bytearray(encoded(photo(garment, 60, 80), kind))
    random = np.random.default_rng(5)
    for _ in range(150):
        damaged = bytearray(data)
        for position in random.integers(0, len(data), 4):
            damaged[position] = random.integers(0, 256)
        try:
            pixels = decode(bytes(damaged)).pixels
        except ImageError:
            continue
        assert pixels.shape == (28, 28)


def test_a_bomb_is_refused_by_its_header_alone():
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(TooManyPixelsError):
        accept(bomb, max_pixels=MAX_PIXELS)
    with pytest.raises(TooManyPixelsError, match="1001 x 1000 pixels, more than 1000000"):
        accept(encoded(Image.new("L", (1001, 1000))), max_pixels=MAX_PIXELS)


def test_arrays_are_taken_as_rows_or_flat_integers_or_floats(garment):
    rows, flat = garment.tolist(), garment.ravel().tolist()
    floats = (garment / 255).tolist()
    for values, unit_range in ((rows, False), (flat, False), (floats, True), (np.ravel(floats).tolist(), True)):
        assert np.array_equal(pixels_of_array(values, FASHION_MNIST, unit_range=unit_range), garment)


@pytest.mark.parametrize("values", [[], [1] * 783, [[0] * 28] * 27, [[0] * 27] * 28, {}, "x", None, [[[0]] * 28] * 28])
def test_arrays_of_another_shape_or_kind_are_refused(values):
    with pytest.raises(ImageError, match=r"shape 28 x 28|must be numbers"):
        pixels_of_array(values, FASHION_MNIST, unit_range=False)


@pytest.mark.parametrize(
    ("value", "unit_range"),
    [(256, False), (-1, False), (1.01, True), (-0.01, True), (float("nan"), True), (True, False), ("1", False)],
)
def test_values_out_of_range_or_of_another_kind_are_refused(value, unit_range):
    with pytest.raises(ImageError, match=r"must be numbers in 0\.\.(1|255)"):
        pixels_of_array([0] * 783 + [value], FASHION_MNIST, unit_range=unit_range)


def test_undeclared_floats_are_refused_with_the_remedy():
    with pytest.raises(ImageError, match='"dtype": "float"'):
        pixels_of_array([0.5] * 784, FASHION_MNIST, unit_range=False)
