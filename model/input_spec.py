"""What a network takes: shape, normalization, and how an image of another size becomes one of this size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np

Resize = Literal["trim", "fit", "crop", "stretch"]
Polarity = Literal["any", "light-on-dark"]

MAX_SIDE = 4096  # pixels


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The input of a network.

    Attributes:
        channels: 1 for grey, 3 for RGB.
        height: in pixels.
        width: in pixels.
        mean: of each channel, subtracted from pixels in [0, 1].
        std: of each channel, by which the difference is divided.
        resize: "crop" cuts out the largest centred rectangle of the input's aspect ratio, of which it keeps
            `crop_fraction`, and scales it; "fit" scales the whole image and pads it with the mean; "stretch" changes
            the aspect ratio; "trim" is Fashion-MNIST's own preparation: trim plain margins, pad to a square with the
            background, and scale to 28 x 28.
        crop_fraction: part of the rectangle's sides that "crop" keeps, in (0, 1].
        polarity: "light-on-dark" if the network was trained on light objects before a dark background, so that images
            with a light border are inverted; else "any".
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize
    crop_fraction: float = 1.0
    polarity: Polarity = "any"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of its range; the message has the rule.
        """
        if self.channels not in (1, 3):
            raise ValueError(f"an image must have 1 channel (grey) or 3 (RGB), got {self.channels}")
        for name in ("height", "width"):
            if type(getattr(self, name)) is not int or not 1 <= getattr(self, name) <= MAX_SIDE:
                raise ValueError(f"the {name} of an image must be 1..{MAX_SIDE} pixels, got {getattr(self, name)!r}")
        self._check_normalization()
        for name, allowed in (("resize", get_args(Resize)), ("polarity", get_args(Polarity))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.resize == "trim" and self.shape != (1, 28, 28):
            raise ValueError("trim makes grey images of 28 x 28 only: take fit, crop or stretch")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"the crop fraction must be in (0, 1], got {self.crop_fraction}")

    def _check_normalization(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} must have {self.channels} finite value(s), got {list(values)}")
        if not min(self.std) > 0:
            raise ValueError(f"std must be above 0, got {list(self.std)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image as the network takes it, (C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of one image as pixels, (H, W) or (H, W, 3)."""
        return (self.height, self.width) if self.channels == 1 else (self.height, self.width, self.channels)

    @property
    def values(self) -> int:
        """Number of values of one image, C H W."""
        return math.prod(self.shape)

    @property
    def lists(self) -> int:
        """Number of lists of one image as nested lists of its pixels."""
        return sum(math.prod(self.pixel_shape[:depth]) for depth in range(len(self.pixel_shape)))

    def as_pixels(self, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Arrange the values of B images as pixels.

        Args:
            values: the values of the images, in any shape, row-major.
            shape: the shape that the images were sent in: (B, H, W, 3), (B, 3, H, W) or (B, H W 3), or of one image
                without B. Of grey images, (B, H, W), (B, 1, H, W) or (B, H W). Channels are last if both fit.

        Returns:
            Pixels (B, H, W, 3), or (B, H, W) of grey images.

        Raises:
            ValueError: the shape is not that of images.
        """
        layout = self.layout(shape)
        if layout is None:
            raise ValueError(f"expected the shape of images {list(self.pixel_shape)}, got {list(shape)}")
        if layout == "first":
            values = np.moveaxis(values.reshape(-1, *self.shape), 1, -1)
        return np.ascontiguousarray(values).reshape(-1, *self.pixel_shape)

    def layout(self, shape: Sequence[int]) -> str | None:
        """Where a shape, see `as_pixels`, has the channels: "last" or "first"; None if it is not that of images."""
        given = tuple(shape)
        for layout, one in (("last", self.pixel_shape), ("first", self.shape), ("last", (self.values,))):
            if one in (given, given[1:]):
                return layout
        return None

    def count(self, shape: Sequence[int]) -> int | None:
        """Number of images that a shape, see `as_pixels`, has; None if it is not that of images."""
        given = tuple(shape)
        if self.layout(given) is None:
            return None
        return 1 if given in (self.pixel_shape, self.shape, (self.values,)) else given[0]

    def normalize(self, pixels_B: np.ndarray) -> np.ndarray:
        """Turn pixels into the network's input: ((pixels / 255) - mean) / std.

        Args:
            pixels_B: uint8 pixels, (B, H, W) or (B, H, W, 3).

        Returns:
            float32 of shape (B, C, H, W).
        """
        planes_B = pixels_B[:, None] if self.channels == 1 else np.ascontiguousarray(pixels_B.transpose(0, 3, 1, 2))
        units_B: np.ndarray = planes_B / np.float32(255)
        if any(self.mean):
            units_B -= np.array(self.mean, np.float32)[:, None, None]
        if any(value != 1 for value in self.std):
            units_B /= np.array(self.std, np.float32)[:, None, None]
        return units_B

    def to_json(self) -> dict[str, Any]:
        """Return the fields for the card."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the result of `to_json`.

        Raises:
            ValueError: a field is missing, unknown or invalid.
        """
        try:
            return cls(**{**fields, "mean": tuple(map(float, fields["mean"])), "std": tuple(map(float, fields["std"]))})
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected an input specification, got one with a bad {error}") from error


FASHION_MNIST = InputSpec(
    channels=1, height=28, width=28, mean=(0.0,), std=(1.0,), resize="trim", polarity="light-on-dark"
)
