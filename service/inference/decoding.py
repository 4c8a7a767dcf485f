"""Decodes uploads to pixels of any size."""

from collections.abc import Iterator, Sequence

from model.input_spec import InputSpec
from service.inference.errors import ImageError
from service.inference.general_decoder import Decoded, decode_image
from service.inference.png import PlainPng, decode_plain
from service.inference.upload import Upload


def decode_all(uploads: Sequence[Upload], *, unit_range: bool, spec: InputSpec) -> Iterator[Decoded | ImageError]:
    """Decode images in their order; yield an error in place of an invalid image.

    Images are decoded lazily, so that at most one large image is in memory. Simple PNG files are small, and are decoded
    together.

    Args:
        uploads: the images.
        unit_range: whether the values of arrays are numbers in [0, 1] instead of integers 0..255.
        spec: what the network takes: grey or RGB, and the shape of arrays.

    Yields:
        Decoded images; `TooManyPixelsError` if the memory does not suffice, `DecoderError` if the decoder failed
        unexpectedly, another `ImageError` for broken data.
    """
    grey = uploads if spec.channels == 1 else ()
    plain = iter(decode_plain([upload.content for upload in grey if isinstance(upload.content, PlainPng)]))
    for upload in uploads:
        pixels = next(plain) if grey and isinstance(upload.content, PlainPng) else None
        try:
            yield decode_image(upload, unit_range=unit_range, spec=spec) if pixels is None else Decoded(pixels, "PNG")
        except ImageError as error:
            yield error
