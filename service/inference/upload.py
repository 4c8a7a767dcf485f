"""Uploaded images, accepted or refused before they are decoded."""

from typing import Any, NamedTuple, Self

from service.inference.errors import as_image_error
from service.inference.formats import ImageStructure, read_structure
from service.inference.limits import ImageLimits
from service.inference.pixels import Pixels
from service.inference.png import PlainPng

# An image file, an array as nested lists, or pixels (H, W) or (H, W, 3).
RawImage = bytes | list[Any] | Pixels


class Upload(NamedTuple):
    """An accepted image that is not decoded yet.

    Attributes:
        content: a simple PNG file, the structure of any other file, an array, or pixels.
        cost: cost of decoding, in pixels of three bytes; 0 for an array and for pixels.
    """

    content: PlainPng | ImageStructure | list[Any] | Pixels
    cost: int = 0

    @classmethod
    def of(cls, image: RawImage, limits: ImageLimits) -> Self:
        """Read and check the structure of an image file; arrays and pixels are not checked here.

        Raises:
            UnknownFormatError: not a PNG, JPEG or WebP file.
            TooManyPixelsError: the file declares too many pixels.
            ImageError: a broken structure, or too large an aspect ratio.
        """
        if not isinstance(image, bytes):
            return cls(image)
        with as_image_error:
            file = PlainPng.of(image) or read_structure(image)
        limits.check(file.width, file.height, file.cost)
        return cls(file, file.cost)
