"""PNG files of the plainest kind, read without the general reader, which takes four times as long to get to the data.

Such a file has 8 bits of grey a pixel, is small and not interlaced, and holds its pixels and nothing else. Whatever is
not quite that, or not quite right, is left to the general reader.
"""

import struct
import zlib
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

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

    def pixels(self) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        """Decode to (H, W); None where the compressed data is not what it should be."""
        compressed = self.data[_HEADER.size : -len(_END) - _CHECKSUM.size]
        try:
            image = Image.frombytes("L", (self.width, self.height), compressed, "zip", "L", 0)
        except ValueError:
            return None
        return np.frombuffer(image.tobytes(), np.uint8).reshape(self.height, self.width)
