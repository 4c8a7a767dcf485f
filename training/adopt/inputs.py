"""The input specification from the command's options, and images as the service prepares them."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from model.input_spec import InputSpec, Polarity, Resize
from service.inference.errors import ImageError
from service.inference.general_decoder import decode_image
from service.inference.limits import ImageLimits
from service.inference.preparation import prepare_all
from service.inference.upload import Upload
from training.adopt.errors import ImagesError
from training.adopt.stored_images import StoredImage
from training.adopt.wording import counted, first_of

# Mean and standard deviation of each channel, of pixels in [0, 1]. ImageNet's are those of torchvision's networks.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "minus1to1": ((0.5,), (0.5,)),
}
_LIMITS = ImageLimits(100_000_000)  # pixels


def input_spec(  # noqa: PLR0913 - one argument an option
    size: str | None,
    channels: int,
    normalize: str,
    mean: str,
    std: str,
    *,
    resize: Resize,
    crop_fraction: float,
    polarity: Polarity,
) -> InputSpec:
    """Make an input specification from the options of the command.

    Raises:
        ValueError: an option is invalid; the message says which and what to do.
    """
    if size is None:
        raise ValueError("--size is missing: give the sides of the network's input, N or HEIGHTxWIDTH")
    sides = size.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() for side in sides):
        raise ValueError(f"--size must be N or HEIGHTxWIDTH, got {size}")
    means, stds = NORMALIZATIONS[normalize]
    if len(means) not in (1, channels):
        raise ValueError(f"--normalize {normalize} is for {len(means)} channels, not for {channels}")
    if bool(mean) != bool(std):
        raise ValueError("--mean and --std belong together: give both, or --normalize")
    return InputSpec(
        channels=channels,
        height=int(sides[0]),
        width=int(sides[-1]),
        mean=_numbers("--mean", mean) if mean else _repeated(means, channels),
        std=_numbers("--std", std) if std else _repeated(stds, channels),
        resize=resize,
        crop_fraction=crop_fraction if resize == "crop" else 1.0,
        polarity=polarity,
    )


def check_images(
    images: Sequence[StoredImage], spec: InputSpec, *, track: Callable[[Iterable[int]], Iterable[int]] = iter
) -> None:
    """Decode all images once, so that a broken one is found before a network is compiled and measured.

    Args:
        images: of one adoption.
        spec: what the network takes.
        track: shows the progress over the indices of the images.

    Raises:
        ImagesError: some can't be decoded; the message names the first.
    """
    wrong: dict[str, str] = {}
    for index in track(range(len(images))):
        try:
            _prepare(images[index], spec)
        except (ImageError, ImagesError, OSError) as error:
            wrong[images[index].name] = str(error)
    if wrong:
        count, reason = counted(len(wrong), "image", "images"), next(iter(wrong.values()))
        raise ImagesError(f"{count} can't be read: {first_of(list(wrong))} ({reason}): remove or replace them")


def prepare_image(image: StoredImage, spec: InputSpec) -> np.ndarray:
    """Decode and resize an image as the service does: uint8 pixels (H, W) or (H, W, 3).

    Raises:
        ImageError: it is not an image; the message names it.
        OSError: its file can't be read.
    """
    try:
        return _prepare(image, spec)
    except ImageError as error:
        raise ImageError(f"{image.name}: {error}: remove the image, or replace it") from error


def _prepare(image: StoredImage, spec: InputSpec) -> np.ndarray:
    decoded = decode_image(Upload.of(image.read(), _LIMITS), unit_range=False, spec=spec)
    (prepared,) = prepare_all([decoded], spec=spec)
    if isinstance(prepared, ImageError):
        raise prepared
    return prepared.pixels


def _repeated(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else values * channels


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{option} must be numbers, separated by commas, got {text}") from error
