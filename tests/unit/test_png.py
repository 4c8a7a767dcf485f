"""Plain PNG files against Pillow's general reader, which alone decides what a file says."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from files import encoded, png
from PIL import Image
from stages import accept, prepare
from stages import decode as decode_upload

from model.input_spec import FASHION_MNIST
from service.inference.decoding import decode_all
from service.inference.errors import ImageError
from service.inference.formats import read_structure
from service.inference.general_decoder import Decoded
from service.inference.png import PlainPng, decode_plain
from service.inference.preparation import Input, prepare_all
from service.inference.upload import Upload

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (28, 28), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(28), 3 * np.arange(28)).astype(np.uint8)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def file(compressed: bytes, *, width: int = 28, height: int = 28, kind: bytes = bytes([8, 0, 0, 0, 0])) -> bytes:
    header = chunk(b"IHDR", struct.pack(">2I", width, height) + kind)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def rows(filters: list[int]) -> bytes:
    """Filtered rows of noise: each type of filter makes other pixels of them (W3C PNG, 9.2)."""
    return b"".join(bytes([kind]) + row.tobytes() for kind, row in zip(filters, NOISE, strict=True))


def found(data: bytes) -> Decoded | str:
    try:
        return decode_upload(accept(data))
    except ImageError as error:
        return str(error)


def by_the_general_reader(data: bytes) -> Decoded | str:
    try:
        return decode_upload(Upload(read_structure(data)))
    except ImageError as error:
        return str(error)


def assert_alike(data: bytes) -> None:
    one, other = found(data), by_the_general_reader(data)
    if isinstance(one, Decoded) and isinstance(other, Decoded):
        assert np.array_equal(one.pixels, other.pixels)
        assert (one.source, one.steps, one.warnings) == (other.source, other.steps, other.warnings)
    else:
        assert one == other


@pytest.mark.parametrize("size", [(28, 28), (1, 1), (300, 7), (250, 250)])
@pytest.mark.parametrize("options", [{}, {"compress_level": 0}, {"optimize": True}])
def test_what_pillow_writes_is_plain(size, options):
    pixels = RNG.integers(0, 256, size[::-1], dtype=np.uint8)
    plain = PlainPng.of(encoded(Image.fromarray(pixels), **options))
    assert (plain.width, plain.height) == size
    assert np.array_equal(decode_plain([plain])[0], pixels)


@pytest.mark.parametrize("kind", range(6))
def test_every_filter_is_undone_as_the_general_reader_does(kind):
    data = file(zlib.compress(rows([kind] * 28)))
    assert PlainPng.of(data) is not None
    assert isinstance(found(data), Decoded) == (kind < 5)
    assert_alike(data)


OTHERS = {
    "colour": encoded(Image.fromarray(NOISE).convert("RGB")),
    "alpha": encoded(Image.fromarray(NOISE).convert("LA")),
    "palette": encoded(Image.fromarray(NOISE).convert("P")),
    "one bit": encoded(Image.fromarray(NOISE > 99)),
    "16 bits": encoded(Image.fromarray(NOISE.astype(np.uint16) * 257)),
    "a resolution": encoded(Image.fromarray(NOISE), dpi=(72, 72)),
    "transparency": encoded(Image.fromarray(NOISE), transparency=0),
    "large": encoded(Image.fromarray(np.zeros((257, 256), np.uint8))),
    "interlaced": file(zlib.compress(rows([0] * 28)), kind=bytes([8, 0, 0, 0, 1])),
    "no pixels": file(zlib.compress(b""), width=0),
    "a jpeg": encoded(Image.fromarray(NOISE), "JPEG"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_left_to_the_general_reader(name):
    assert PlainPng.of(OTHERS[name]) is None


def damaged() -> Iterator[bytes]:
    whole = png(SMOOTH)
    yield from (whole[:end] for end in range(len(whole)))
    yield whole + b"x"
    for position in range(len(whole)):
        yield whole[:position] + bytes([whole[position] ^ RNG.integers(1, 256)]) + whole[position + 1 :]
    compressed = zlib.compress(rows([kind % 5 for kind in range(28)]))
    yield from (file(compressed[:end]) for end in range(len(compressed)))
    yield file(compressed + b"more")
    yield file(zlib.compress(rows([5] * 28)))
    yield file(zlib.compress(rows([0] * 28) + b"more"))
    yield file(compressed, height=27)
    yield file(compressed, height=29)
    for _ in range(200):
        yield file(zlib.compress(rows(RNG.integers(0, 5, 28).tolist())))
    for _ in range(1000):
        changed = bytearray(compressed)
        changed[RNG.integers(len(changed))] = RNG.integers(256)
        yield file(bytes(changed))


def test_damaged_file_gives_result_of_general_reader():
    kinds = {"plain": 0, "picture": 0, "error": 0}
    for data in damaged():
        assert_alike(data)
        kinds["plain"] += PlainPng.of(data) is not None
        kinds["picture" if isinstance(found(data), Decoded) else "error"] += 1
    assert min(kinds.values()) > 100, kinds


def test_files_decoded_together_are_those_decoded_alone(fashion):
    """Whatever filter the rows beside a picture have, and whatever is wrong with its neighbours."""
    images = [png(pixels) for pixels in fashion.test.images_B[:500].numpy()]
    images += [file(zlib.compress(rows([kind] * 28))) for kind in range(5)]
    plain = [one for data in (*images, *damaged(), *images) if (one := PlainPng.of(data)) and one[:2] == (28, 28)]
    broken = 0
    for one, pixels in zip(plain, decode_plain(plain), strict=True):
        (alone,) = decode_plain([one])
        broken += alone is None
        assert np.array_equal(pixels, alone) if alone is not None else pixels is None
    assert broken > 500
    sound = [PlainPng.of(data) for data in images]
    for data, pixels in zip(images, decode_plain(sound), strict=True):
        assert np.array_equal(pixels, by_the_general_reader(data).pixels)
    assert decode_plain([]) == []


def test_files_of_several_sizes_are_decoded_together():
    shapes = [(28, 28), (9, 7), (28, 28), (7, 9), (9, 7), (1, 1)]
    images = [np.random.default_rng(number).integers(0, 256, shape, np.uint8) for number, shape in enumerate(shapes)]
    for pixels, decoded in zip(images, decode_plain([PlainPng.of(png(one)) for one in images]), strict=True):
        assert np.array_equal(pixels, decoded)


def alone(data: bytes) -> Input | ImageError:
    try:
        return prepare(decode_upload(accept(data, max_pixels=1000)))
    except ImageError as error:
        return error


def test_images_are_prepared_together_as_each_alone(fashion):
    """Whatever their kind and damage; also those that look plain and are not quite."""
    images = [*(png(pixels) for pixels in fashion.test.images_B[:100].numpy()), *damaged(), *OTHERS.values()]
    accepted, refused = [], 0
    for data in images:
        try:
            accepted.append((data, accept(data, max_pixels=1000)))
        except ImageError:
            refused += 1
    together = prepare_all(
        decode_all([upload for _, upload in accepted], unit_range=False, spec=FASHION_MNIST), spec=FASHION_MNIST
    )
    kinds = {Input: 0, ImageError: 0}
    for (data, _), one in zip(accepted, together, strict=True):
        other = alone(data)
        kinds[type(one)] += 1
        assert type(one) is type(other)
        if isinstance(other, ImageError):
            assert str(one) == str(other)
        else:
            assert np.array_equal(one.pixels, other.pixels)
            assert one._replace(pixels=None) == other._replace(pixels=None)
    assert min(refused, *kinds.values()) > 100, kinds
