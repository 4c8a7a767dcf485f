"""Errors of images that can't be read."""

import struct
from types import TracebackType

# Exceptions that Pillow's parsers raise on broken files.
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, struct.error)


class ImageError(ValueError):
    """An image that can't be read; the message has the reason."""


class UnknownFormatError(ImageError):
    """Bytes that are not a PNG, JPEG or WebP image."""


class TooManyPixelsError(ImageError):
    """An image that is too large to decode."""


class DecoderError(ImageError):
    """An image on which the decoder failed unexpectedly; `__cause__` has the error."""


class _AsImageError:
    """Turns any exception of a decoder, for example on malicious files, into an `ImageError`."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, MemoryError):
            raise TooManyPixelsError("the image needs more memory than is available") from error
        if isinstance(error, _PILLOW_ERRORS) and not isinstance(error, ImageError):
            raise ImageError(f"the image is broken: {error}") from error
        if isinstance(error, Exception) and not isinstance(error, ImageError):
            raise DecoderError("the image is broken: the decoder failed on it") from error


as_image_error = _AsImageError()
