"""The stages of reading one image, one by one: what the service does for many at once, for Fashion-MNIST's
network; errors are raised.
"""

import math

from model.input_spec import FASHION_MNIST
from service.inference.decoding import decode_all
from service.inference.errors import ImageError
from service.inference.general_decoder import Decoded
from service.inference.limits import ImageLimits
from service.inference.preparation import Input, Invert, prepare_all
from service.inference.upload import RawImage, Upload


def accept(image: RawImage, *, max_pixels: int = 10**6, max_aspect_ratio: float = math.inf) -> Upload:
    return Upload.of(image, ImageLimits(max_pixels, max_aspect_ratio))


def decode(upload: Upload, *, unit_range: bool = False) -> Decoded:
    (decoded,) = decode_all([upload], unit_range=unit_range, spec=FASHION_MNIST)
    if isinstance(decoded, ImageError):
        raise decoded
    return decoded


def prepare(decoded: Decoded, *, invert: Invert = Invert.AUTO) -> Input:
    (prepared,) = prepare_all([decoded], invert=invert, spec=FASHION_MNIST)
    assert isinstance(prepared, Input)
    return prepared
