"""Limits on the size of image files."""

import math
from typing import NamedTuple

from service.inference.errors import ImageError, TooManyPixelsError


class ImageLimits(NamedTuple):
    """Limits on the size that an image file declares.

    Attributes:
        max_pixels: maximum cost of decoding, in pixels of three bytes.
        max_aspect_ratio: maximum ratio of the longer side to the shorter one.
    """

    max_pixels: int
    max_aspect_ratio: float = math.inf

    def check(self, width: int, height: int, cost: int) -> None:
        """Check the declared size of a file.

        Args:
            width: in pixels.
            height: in pixels.
            cost: cost of decoding, in pixels of three bytes.

        Raises:
            TooManyPixelsError: decoding costs too much.
            ImageError: the aspect ratio is too large.
        """
        size = f"{width} x {height} pixels"
        if cost > self.max_pixels:
            counted = "" if cost == width * height else f", which count as {cost}"
            raise TooManyPixelsError(f"the image has {size}{counted}, more than {self.max_pixels}")
        if max(width, height) > self.max_aspect_ratio * min(width, height):
            ratio = f"{self.max_aspect_ratio:g}"
            raise ImageError(f"the image has {size}: a side may be {ratio} times as long as the other at most")
