"""Images as clients send them, accepted or refused before anything is decoded."""

from typing import Any, NamedTuple, Self

from service.inference.errors import as_image_error
from service.inference.formats import ImageStructure, read_structure
from service.inference.limits import ImageLimits
from service.inference.pixels import Pixels
from service.inference.png import PlainPng

# An image file; an array as nested lists; or pixels, (28, 28).
RawImage = bytes | list[Any] | Pixels


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
        limits.check(file.width, file.height, file.cost)
        return cls(file, file.cost)
