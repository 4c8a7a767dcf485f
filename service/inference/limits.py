"""How large an image file may be."""

import math
from typing import NamedTuple

from service.inference.errors import ImageError, TooManyPixelsError


class ImageLimits(NamedTuple):
    """What an image file may announce.

    Attributes:
        max_pixels: of three bytes, which decoding it may cost as much as.
        max_aspect_ratio: largest ratio of its longer side to the shorter one.
    """

    max_pixels: int
    max_aspect_ratio: float = math.inf

    def check(self, width: int, height: int, cost: int) -> None:
        """Refuse a file by what it announces.

        Args:
            width: in pixels.
            height: in pixels.
            cost: of decoding it, in pixels of three bytes.

        Raises:
            TooManyPixelsError: it costs too much.
            ImageError: one side is too long.
        """
        size = f"{width} x {height} pixels"
        if cost > self.max_pixels:
            counted = "" if cost == width * height else f", which count as {cost}"
            raise TooManyPixelsError(f"the image has {size}{counted}, more than {self.max_pixels}")
        if max(width, height) > self.max_aspect_ratio * min(width, height):
            ratio = f"{self.max_aspect_ratio:g}"
            raise ImageError(f"the image has {size}: a side may be {ratio} times as long as the other at most")
