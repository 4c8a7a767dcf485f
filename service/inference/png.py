"""PNG files of the plainest kind, read without the general reader, which takes many times as long to get to the pixels.

Such a file has 8 bits of grey a pixel, is small and not interlaced, and holds its pixels and nothing else. Whatever is
not quite that, or not quite right, is left to the general reader.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from service.inference.pixels import Pixels

_START = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
_KIND = bytes([8, 0, 0, 0, 0])  # bits a channel; grey; compression, filters and interlacing: W3C PNG, 11.2.1
_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_HEADER = struct.Struct(">16x II 5s II 4s")  # width, height, kind, checksum of IHDR; length and type of the next chunk
_CHECKSUM = struct.Struct(">I")
_MOST_PIXELS = 2**16


class PlainPng(NamedTuple):
    """A file of that kind.

    Attributes:
        width: in pixels.
        height: in pixels.
        data: the whole file.
    """

    width: int
    height: int
    data: bytes

    @classmethod
    def of(cls, data: bytes) -> Self | None:
        """Read the header; None for any other file."""
        if not (data.startswith(_START) and data.endswith(_END) and len(data) >= _HEADER.size + len(_END)):
            return None
        width, height, kind, checksum, length, name = _HEADER.unpack_from(data)
        end = _HEADER.size + length
        if (
            (kind, name, end + _CHECKSUM.size + len(_END)) != (_KIND, b"IDAT", len(data))
            or not 0 < width * height <= _MOST_PIXELS
            or zlib.crc32(data[12:29]) != checksum
            or zlib.crc32(data[_HEADER.size - 4 : end]) != _CHECKSUM.unpack_from(data, end)[0]
        ):
            return None
        return cls(width, height, data)

    @property
    def cost(self) -> int:
        """Of decoding it, in pixels."""
        return self.width * self.height

    def filtered(self) -> bytes | None:
        """Decompress the rows, each behind a byte that names its filter; None if they are not what they should be."""
        size = self.height * (self.width + 1)
        stream = zlib.decompressobj()
        try:
            rows = stream.decompress(self.data[_HEADER.size : -len(_END) - _CHECKSUM.size], size + 1)
        except zlib.error:
            return None
        return rows if stream.eof and len(rows) == size else None


def decode_plain(files: Sequence[PlainPng]) -> list[Pixels | None]:
    """Decode files, (H, W) each; None for one that is not quite right."""
    if len({(file.width, file.height) for file in files}) < 2:
        return _decode_alike(files)
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, file in enumerate(files):
        by_size.setdefault((file.width, file.height), []).append(index)
    decoded: list[Pixels | None] = [None] * len(files)
    for indices in by_size.values():
        for index, pixels in zip(indices, _decode_alike([files[index] for index in indices]), strict=True):
            decoded[index] = pixels
    return decoded


def _decode_alike(files: Sequence[PlainPng]) -> list[Pixels | None]:
    """Decode files of the same size.

    Pillow undoes the filters of all at once, as of one tall picture: what it costs to begin and to end is paid once. A
    row of zeros separates them, as filters take a picture's first row to lie below such a one (W3C PNG, 9.2).
    """
    if not files:
        return []
    width, height, _ = files[0]
    parts = [file.filtered() for file in files]
    whole = [part for part in parts if part is not None]
    gap = bytes(width + 1)
    storing = zlib.compressobj(level=0, wbits=9, memLevel=1)  # with little memory, as there is nothing to look for
    stream = storing.compress(b"".join([gap + part for part in whole])) + storing.flush()
    try:
        tall = Image.frombytes("L", (width, len(whole) * (height + 1)), stream, "zip", "L", 0)
    except ValueError:  # an undefined filter
        return [None] if len(files) == 1 else [_decode_alike([file])[0] for file in files]
    pixels = iter(np.frombuffer(tall.tobytes(), np.uint8).reshape(len(whole), height + 1, width)[:, 1:])
    return [None if part is None else next(pixels) for part in parts]
