"""Images as clients send them, accepted or refused before anything is decoded."""

import math
from typing import Any, NamedTuple, Self

from service.inference.errors import ImageError, TooManyPixelsError, as_image_error
from service.inference.formats import ImageStructure, read_structure
from service.inference.pixels import Pixels
from service.inference.png import PlainPng

# An image file; an array as nested lists; or pixels, (28, 28).
RawImage = bytes | list[Any] | Pixels


class ImageLimits(NamedTuple):
    """What an image file may announce.

    Attributes:
        max_pixels: of three bytes, which decoding it may cost as much as.
        max_aspect_ratio: largest ratio of its longer side to the shorter one.
    """

    max_pixels: int
    max_aspect_ratio: float = math.inf


class Upload(NamedTuple):
    """An image whose structure is read and accepted, not yet decoded.

    Attributes:
        content: a file of the plainest kind, the structure of any other file, an array, or pixels.
        cost: of decoding it, in pixels of three bytes; 0 for an array and for pixels.
    """

    content: PlainPng | ImageStructure | list[Any] | Pixels
    cost: int = 0

    @classmethod
    def of(cls, image: RawImage, limits: ImageLimits) -> Self:
        """Read the structure of an image file; take everything else as it is.

        Raises:
            UnknownFormatError: not a PNG, JPEG or WebP file.
            TooManyPixelsError: more pixels announced than the limits allow.
            ImageError: a broken structure, or one side too long.
        """
        if not isinstance(image, bytes):
            return cls(image)
        with as_image_error:
            file = PlainPng.of(image) or read_structure(image)
        _check(file, limits)
        return cls(file, file.cost)


def _check(file: PlainPng | ImageStructure, limits: ImageLimits) -> None:
    size = f"{file.width} x {file.height} pixels"
    if file.cost > limits.max_pixels:
        counted = "" if file.cost == file.width * file.height else f", which count as {file.cost}"
        raise TooManyPixelsError(f"the image has {size}{counted}, more than {limits.max_pixels}")
    if max(file.width, file.height) > limits.max_aspect_ratio * min(file.width, file.height):
        ratio = f"{limits.max_aspect_ratio:g}"
        raise ImageError(f"the image has {size}: a side may be {ratio} times as long as the other at most")
