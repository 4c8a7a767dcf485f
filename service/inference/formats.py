"""Reads the structure of image files: the header, the orientation, and the parts that contain the pixels.

Decoders get a file without metadata: metadata is damaged more often than pixels, and parsing it can cost more than
decoding them. Sources: W3C PNG (third edition), ITU T.81 (JPEG), the WebP container and Exif 2.3 (TIFF 6.0).
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import numpy as np

from service.inference.errors import ImageError, UnknownFormatError

FORMATS = ("PNG", "JPEG", "WEBP")

_MAX_PARTS = 2**16  # chunks of a PNG or WebP file, segments of a JPEG file
_MAX_INFLATED = 2**23  # bytes of a file's metadata after decompression
_MAX_SCANS = 100  # of a JPEG file; encoders make about 10
_FREE_SCANS = 20  # number of scans included in the cost of decoding the pixels
_PIXEL_BYTES = 3  # bytes of a pixel with cost 1

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_START = len(_PNG) + 25  # signature and IHDR chunk
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG colour type
_SAMPLES_OF_TRANSPARENCY = {0: 1, 2: 3}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PALETTE = 3

_SOI, _EOI, _SOS, _APP0, _APP1, _APP2, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))  # markers SOF0 to SOF15
_FIRST_MARKER = 0xC0
# Frame headers, tables for decoding, and scans.
_PIXEL_MARKERS = {*_FRAMES, 0xC4, 0xCC, 0xDB, 0xDC, 0xDD, _SOS, _EOI}
# Segments that determine the colour space: their first bytes and minimum length.
_COLOUR_MARKERS = {_APP0: (b"JFIF\0", 14), _APP14: (b"Adobe", 12)}
_NOT_A_MARKER = (0x00, 0xFF, 0x01, *range(0xD0, 0xD8))  # escapes, fill bytes, and markers within a scan
_IS_MARKER = np.ones(256, dtype=np.bool_)
_IS_MARKER[list(_NOT_A_MARKER)] = False
_EXIF, _XMP, _MULTI_PICTURE = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"MPF\0"
_PROFILE = b"ICC_PROFILE\0"  # followed by the part's number and the number of parts (ICC.1:2022, B.4)
_SRGB = re.compile(rb"s\0?R\0?G\0?B|IEC ?61966-2[-.]1")

_ORIENTATION, _PICTURES = 0x0112, 0xB001  # TIFF tags
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I"}  # BYTE, SHORT, LONG
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


class ImageStructure(NamedTuple):
    """The structure of an image file: its header, and the file without metadata.

    Attributes:
        format: "PNG", "JPEG" or "WEBP".
        width: in pixels.
        height: in pixels.
        cost: cost of decoding, in pixels of three bytes.
        data: the file without its metadata.
        orientation: EXIF orientation, 1..8.
        frames: number of pictures in the file; only the first one is decoded.
        transparent: the transparent grey level or colour of a PNG without an alpha channel; None if there is none.
        bits: bits of a sample, 8 or 16; fewer are decoded to 8.
        warnings: notes on ignored parts.
        has_profile: whether it has a colour profile other than sRGB.
    """

    format: str
    width: int
    height: int
    cost: int
    data: bytes
    orientation: int = 1
    frames: int = 1
    transparent: tuple[int, ...] | None = None
    bits: int = 8
    warnings: tuple[str, ...] = ()
    has_profile: bool = False


def is_image_file(data: bytes) -> bool:
    """Whether the first bytes are the signature of a PNG, JPEG or WebP file."""
    return any(is_format(data) for is_format, _ in _READERS)


def read_structure(data: bytes) -> ImageStructure:
    """Read the structure of an image file, in time proportional to its size.

    Raises:
        UnknownFormatError: not a PNG, JPEG or WebP file.
        ImageError: a broken structure.
    """
    for is_format, read in _READERS:
        if is_format(data):
            try:
                return read(data)
            except (struct.error, IndexError) as error:
                raise ImageError("the image is broken: it ends within its header") from error
    raise UnknownFormatError(f"the image must be a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file")


class _Metadata:
    """Collects the orientation from metadata, and the names of damaged metadata."""

    def __init__(self) -> None:
        self._by_exif: int | None = None
        self._by_xmp: int | None = None
        self._damaged: dict[str, None] = {}
        self._remaining = _MAX_INFLATED
        self.has_profile = False

    def inflate(self, data: bytes, name: str) -> bytes:
        """Decompress metadata; note invalid data as damaged.

        Raises:
            ImageError: all metadata together are too large, as in a decompression bomb.
        """
        try:
            inflated = zlib.decompressobj().decompress(data, self._remaining + 1)
        except zlib.error:
            self.damaged(name)
            return b""
        self._remaining -= len(inflated)
        if self._remaining < 0:
            raise ImageError(f"the image is broken: its metadata inflate to more than {_MAX_INFLATED} bytes")
        return inflated

    def exif(self, data: bytes) -> None:
        """Read the orientation from EXIF."""
        try:
            orientation = _tiff_integer(data.removeprefix(_EXIF), _ORIENTATION)
        except (struct.error, ValueError):
            self.damaged("EXIF")
            return
        if self._by_exif is None and orientation in range(1, 9):
            self._by_exif = orientation

    def xmp(self, data: bytes) -> None:
        """Read the orientation from XMP, which is used if EXIF has none."""
        match = _XMP_ORIENTATION.search(data)
        if match:
            self._by_xmp = int(match[1])

    def profile(self, data: bytes | bytearray) -> None:
        """Note a colour profile (ICC.1:2022) whose description does not name sRGB, in ASCII or UTF-16."""
        self.has_profile |= bool(data) and not _SRGB.search(data)

    def damaged(self, name: str) -> None:
        """Note ignored metadata."""
        self._damaged[name] = None

    @property
    def orientation(self) -> int:
        """EXIF orientation, 1..8; 1 if there is none."""
        return self._by_exif or self._by_xmp or 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """One warning if any metadata are damaged."""
        names = list(self._damaged)
        listed = ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")
        return (f"damaged metadata were ignored: {listed}",) if names else ()


def _tiff_integer(data: bytes, tag: int) -> int | None:
    """Value of an integer tag in the first directory of a TIFF header; None if it is missing.

    Raises:
        ValueError, struct.error: the header or the directory is damaged before the tag is found.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        raise ValueError("no TIFF header")
    (offset,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, offset)
    for index in range(count):
        start = offset + 2 + 12 * index
        entry_tag, kind, values = struct.unpack_from(f"{order}HHI", data, start)
        if entry_tag == tag and kind in _TIFF_INTEGERS and values == 1:
            return int(struct.unpack_from(order + _TIFF_INTEGERS[kind], data, start + 8)[0])
    return None


def _broken(kind: str, reason: str) -> ImageError:
    return ImageError(f"the image is broken: {reason} ({kind})")


def _too_many_parts(kind: str, parts: str) -> ImageError:
    return _broken(kind, f"it has more than {_MAX_PARTS} {parts}")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(name)))


class _PngHeader(NamedTuple):
    width: int
    height: int
    depth: int
    colour: int

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Read signature and IHDR chunk."""
        if not data.startswith(_PNG):
            raise _broken("PNG", "its signature is damaged, for example by a transfer in text mode")
        header = data[len(_PNG) : _PNG_START]
        if header[:8] != b"\0\0\0\x0dIHDR" or zlib.crc32(header[4:-4]) != int.from_bytes(header[-4:], "big"):
            raise _broken("PNG", "its header (the IHDR chunk) is missing, cut off, or has a wrong checksum")
        width, height, depth, colour, compression, filters, interlace = struct.unpack_from(">IIBBBBB", header, 8)
        if depth not in _DEPTHS.get(colour, ()):
            raise _broken("PNG", f"colour type {colour} with {depth} bits is not defined")
        if not (0 < width < 2**31 and 0 < height < 2**31) or compression or filters or interlace > 1:
            raise _broken("PNG", "its header has values that are not defined")
        return cls(width, height, depth, colour)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield name, content and validity of the chunks after the header up to IEND."""
    view, position = memoryview(data), _PNG_START
    for _ in range(_MAX_PARTS):
        if len(data) - position < 8:
            return
        length, name = struct.unpack_from(">I4s", data, position)
        if not name.isalpha():
            raise _broken("PNG", f"there is no chunk at byte {position}")
        end = position + 8 + length
        checksum = data[end : end + 4]
        is_valid = len(checksum) == 4 and zlib.crc32(view[position + 4 : end]) == int.from_bytes(checksum, "big")
        yield name, data[position + 8 : end], is_valid
        if name == b"IEND":
            return
        position = end + 4
    raise _too_many_parts("PNG", "chunks")


class _PngParts:
    """Collects the contents of the chunks of a PNG file."""

    def __init__(self) -> None:
        self.metadata = _Metadata()
        self.pixels: list[bytes] = []
        self.palette = self.transparency = b""
        self.animated = self.controls = 0
        self._is_past_pixels = False

    def add(self, name: bytes, content: bytes, *, is_valid: bool) -> None:
        """Add a chunk; the first one counts if only one is allowed."""
        is_critical = not name[0] & 0x20
        self._is_past_pixels |= bool(self.pixels) and name != b"IDAT"
        if self._is_past_pixels and is_critical:
            return  # pixels are in one sequence of chunks; later critical chunks are ignored
        if not is_valid:
            if is_critical:
                raise _broken("PNG", f"its {name.decode()} chunk is cut off or has a wrong checksum")
            self.metadata.damaged(name.decode())
        elif name in _PNG_METADATA:
            _PNG_METADATA[name](content, self.metadata)
        elif name == b"IDAT":
            self.pixels.append(content)
        elif not self._is_past_pixels:
            self._add_before_pixels(name, content, is_critical=is_critical)

    def _add_before_pixels(self, name: bytes, content: bytes, *, is_critical: bool) -> None:
        match name:
            case b"PLTE":
                self.palette = self.palette or content
            case b"tRNS":
                self.transparency = self.transparency or content
            case b"acTL" if len(content) == 8:
                self.animated = int.from_bytes(content[:4], "big")
            case b"fcTL":
                self.controls += 1
            case _ if is_critical and name != b"IEND":
                raise _broken("PNG", f"its critical {name.decode()} chunk is not supported")

    @property
    def frames(self) -> int:
        """Number of frames; a default image without a frame control chunk is an additional one."""
        return max(self.animated + (self.controls == 0), 1) if self.animated else 1


def _read_png(data: bytes) -> ImageStructure:
    width, height, depth, colour = _PngHeader.of(data)
    parts = _PngParts()
    for name, content, is_valid in _png_chunks(data):
        parts.add(name, content, is_valid=is_valid)
    if not parts.pixels:
        raise _broken("PNG", "it has no pixels (no IDAT chunk)")
    chunks, transparent = [data[:_PNG_START]], None
    if colour == _PALETTE:
        chunks += _palette_chunks(parts.palette, parts.transparency, size=1 << depth)
    elif parts.transparency and colour in _SAMPLES_OF_TRANSPARENCY:
        transparent = _transparent(parts, _SAMPLES_OF_TRANSPARENCY[colour], depth)
    chunks += [_chunk(b"IDAT", b"".join(parts.pixels)), _chunk(b"IEND", b"")]
    pixel_bytes = _CHANNELS[colour] * max(depth // 8, 1) * (2 if depth == 16 and colour == 2 and transparent else 1)
    cost = width * height * max(pixel_bytes, _PIXEL_BYTES) // _PIXEL_BYTES
    return ImageStructure(
        "PNG",
        width,
        height,
        cost,
        b"".join(chunks),
        orientation=parts.metadata.orientation,
        frames=parts.frames,
        transparent=transparent,
        bits=max(depth, 8),
        warnings=parts.metadata.warnings,
        has_profile=parts.metadata.has_profile,
    )


def _palette_chunks(palette: bytes, transparency: bytes, *, size: int) -> list[bytes]:
    """Chunks of the palette and its transparency; missing entries are black, as in libpng."""
    if not palette or len(palette) % 3 or len(palette) > 3 * 256:
        raise _broken("PNG", "its palette (the PLTE chunk) is missing or has a wrong length")
    chunks = [_chunk(b"PLTE", palette[: 3 * size].ljust(3 * size, b"\0"))]
    if transparency:
        chunks.append(_chunk(b"tRNS", transparency[: len(palette) // 3]))
    return chunks


def _transparent(parts: _PngParts, samples: int, depth: int) -> tuple[int, ...] | None:
    """The transparent grey level or colour, of 8 or 16 bits per sample; bits above the depth are ignored."""
    if len(parts.transparency) != 2 * samples:
        parts.metadata.damaged("tRNS")
        return None
    top = (1 << depth) - 1
    scale = 1 if depth == 16 else 255 // top
    return tuple((one & top) * scale for one in struct.unpack(f">{samples}H", parts.transparency))


def _png_exif(content: bytes, metadata: _Metadata) -> None:
    metadata.exif(content)


def _png_text(content: bytes, metadata: _Metadata) -> None:
    """Read EXIF from a text chunk, where ImageMagick stores it."""
    keyword, _, text = content.partition(b"\0")
    if keyword == b"Raw profile type exif":
        # A newline, the profile's name, its length, then hexadecimal digits.
        try:
            metadata.exif(bytes.fromhex("".join(text.decode("ascii").split("\n")[3:])))
        except ValueError:
            metadata.damaged("EXIF")


def _png_compressed_text(content: bytes, metadata: _Metadata) -> None:
    keyword, _, compressed = content.partition(b"\0")
    _png_text(keyword + b"\0" + metadata.inflate(compressed[1:], "zTXt"), metadata)


def _png_international_text(content: bytes, metadata: _Metadata) -> None:
    """Read XMP, which is stored in international text."""
    keyword, _, rest = content.partition(b"\0")
    is_compressed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    if is_compressed:
        text = metadata.inflate(text, "iTXt")
    if keyword == b"XML:com.adobe.xmp":
        metadata.xmp(text)


def _png_profile(content: bytes, metadata: _Metadata) -> None:
    metadata.profile(metadata.inflate(content.partition(b"\0")[2][1:], "iCCP"))


_PNG_METADATA: dict[bytes, Callable[[bytes, _Metadata], None]] = {
    b"eXIf": _png_exif,
    b"tEXt": _png_text,
    b"iTXt": _png_international_text,
    b"zTXt": _png_compressed_text,
    b"iCCP": _png_profile,
}


class _JpegParts:
    """Collects the contents of the segments of a JPEG file."""

    def __init__(self) -> None:
        self.metadata = _Metadata()
        self.exif: list[bytes] = []
        self.profile = bytearray()
        self.width = self.height = self.components = self.scans = 0
        self.frames = 1

    def add(self, marker: int, content: bytes) -> bool:
        """Add a segment; return whether decoding needs it."""
        if marker in _FRAMES:
            if self.components:
                raise _broken("JPEG", "it has two frame headers")
            self.height, self.width, self.components = struct.unpack_from(">xHHB", content)
        self.scans += marker == _SOS
        if marker == _APP1 and content.startswith(_EXIF):
            self.exif.append(content.removeprefix(_EXIF))
        elif marker == _APP1 and content.startswith(_XMP):
            self.metadata.xmp(content)
        elif marker == _APP2 and content.startswith(_PROFILE):
            self.profile += content[len(_PROFILE) + 2 :]
        elif marker == _APP2 and content.startswith(_MULTI_PICTURE):
            self.frames = _pictures(content)
        start, length = _COLOUR_MARKERS.get(marker, (b"", 0))
        has_colour_space = length > 0 and content.startswith(start) and len(content) >= length
        return marker in _PIXEL_MARKERS or has_colour_space


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield marker, content and all bytes of each segment, including the data of scans, up to the end of the image."""
    octets = np.frombuffer(data, np.uint8)
    # Positions of possible markers: 0xFF followed by a marker's second byte. One vectorized search has the same cost
    # for any content.
    places = np.flatnonzero((octets[:-1] == 0xFF) & _IS_MARKER[octets[1:]])
    position, scans = 2, 0
    for _ in range(_MAX_PARTS):
        index = int(np.searchsorted(places, position))
        if index == len(places):
            return
        start = int(places[index])
        marker = data[start + 1]
        position = start + 2
        if marker == _EOI:
            yield marker, b"", data[start:position]
            return
        if marker == _SOI:
            continue
        if marker < _FIRST_MARKER:
            raise _broken("JPEG", f"its marker {marker:02X} is not defined")
        length = int.from_bytes(data[position : position + 2], "big")
        content, position = data[position + 2 : position + length], position + length
        if length < 2 or len(content) < length - 2:
            if scans:
                return
            raise _broken("JPEG", "it ends within its header")
        if marker == _SOS:
            scans += 1
            following = int(np.searchsorted(places, position))
            position = int(places[following]) if following < len(places) else len(data)
        yield marker, content, data[start:position]
    raise _too_many_parts("JPEG", "segments")


def _read_jpeg(data: bytes) -> ImageStructure:
    parts, segments = _JpegParts(), [data[:2]]
    for marker, content, segment in _jpeg_segments(data):
        if parts.add(marker, content):
            segments.append(segment)
    if not (parts.scans and parts.width and parts.height):
        raise _broken("JPEG", "it has no frame header with a size, or no scan")
    if parts.scans > _MAX_SCANS:
        raise ImageError(f"the JPEG image has {parts.scans} scans; at most {_MAX_SCANS} are allowed")
    if parts.exif:
        parts.metadata.exif(b"".join(parts.exif))
    parts.metadata.profile(parts.profile)
    samples = parts.width * parts.height * max(parts.components, _PIXEL_BYTES)
    return ImageStructure(
        "JPEG",
        parts.width,
        parts.height,
        samples * max(parts.scans, _FREE_SCANS) // (_PIXEL_BYTES * _FREE_SCANS),
        b"".join(segments),
        orientation=parts.metadata.orientation,
        frames=parts.frames,
        warnings=parts.metadata.warnings,
        has_profile=parts.metadata.has_profile,
    )


def _pictures(content: bytes) -> int:
    """Number of pictures in a multi-picture file (CIPA DC-007)."""
    try:
        return max(_tiff_integer(content.removeprefix(_MULTI_PICTURE), _PICTURES) or 1, 1)
    except (struct.error, ValueError):
        return 1


def _read_webp(data: bytes) -> ImageStructure:
    metadata, frames, position = _Metadata(), 0, 12
    width = height = 0
    for _ in range(_MAX_PARTS):
        if len(data) - position < 8:
            break
        name, length = struct.unpack_from("<4sI", data, position)
        content = memoryview(data)[position + 8 : position + 8 + length]
        if not width and name in _WEBP_SIZES:
            width, height = _WEBP_SIZES[name](bytes(content[:10]))
        frames += name == b"ANMF"
        if name == b"EXIF":
            metadata.exif(bytes(content))
        elif name == b"XMP ":
            metadata.xmp(bytes(content))
        elif name == b"ICCP":
            metadata.profile(bytes(content))
        position += 8 + length + length % 2
    else:
        raise _too_many_parts("WebP", "chunks")
    if not width:
        raise _broken("WebP", "it has no pixels")
    cost = 2 * width * height  # the decoder needs memory for three pictures
    return ImageStructure(
        "WEBP",
        width,
        height,
        cost,
        data,
        orientation=metadata.orientation,
        frames=max(frames, 1),
        warnings=metadata.warnings,
        has_profile=metadata.has_profile,
    )


def _lossy_size(content: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<6xHH", content)
    return width & 0x3FFF, height & 0x3FFF


def _lossless_size(content: bytes) -> tuple[int, int]:
    (bits,) = struct.unpack_from("<xI", content)
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _canvas_size(content: bytes) -> tuple[int, int]:
    return int.from_bytes(content[4:7], "little") + 1, int.from_bytes(content[7:10], "little") + 1


_WEBP_SIZES = {b"VP8 ": _lossy_size, b"VP8L": _lossless_size, b"VP8X": _canvas_size}

_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], ImageStructure]], ...] = (
    (lambda data: data[1:4] == b"PNG", _read_png),
    (lambda data: data[:3] == b"\xff\xd8\xff", _read_jpeg),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _read_webp),
)
