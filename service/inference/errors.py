"""Why an image can't be taken."""

import struct
from types import TracebackType

# What Pillow's parsers raise on broken files.
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, struct.error)


class ImageError(ValueError):
    """An image that can't be taken; the message says why."""


class UnknownFormatError(ImageError):
    """Bytes that are no PNG, JPEG or WebP image."""


class TooManyPixelsError(ImageError):
    """An image that would cost more to decode than is allowed."""


class DecoderError(ImageError):
    """An image on which the decoder failed in an unexpected way; the cause says how."""


class _AsImageError:
    """Turns whatever a decoder raises on hostile bytes into an `ImageError`."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, MemoryError):
            raise TooManyPixelsError("the image takes more memory than there is") from error
        if isinstance(error, _PILLOW_ERRORS) and not isinstance(error, ImageError):
            raise ImageError(f"the image is broken: {error}") from error
        if isinstance(error, Exception) and not isinstance(error, ImageError):
            raise DecoderError("the image is broken: the decoder failed on it") from error


as_image_error = _AsImageError()
