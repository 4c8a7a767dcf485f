"""Input specifications: their checks, normalization, and the resizing that they ask for."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from files import encoded
from PIL import Image, ImageCms, ImageOps

from model.input_spec import FASHION_MNIST, InputSpec
from service.inference.general_decoder import Decoded, decode_image
from service.inference.limits import ImageLimits
from service.inference.preparation import Input, Invert, prepare, prepare_all
from service.inference.resizing import resize
from service.inference.upload import Upload
from training.vision import torchvision

v2 = torchvision.transforms.v2

RGB = InputSpec(
    channels=3, height=20, width=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize="crop", crop_fraction=0.8
)
GREY = InputSpec(channels=1, height=16, width=16, mean=(0.0,), std=(1.0,), resize="fit", polarity="light-on-dark")


def smooth(height: int, width: int) -> np.ndarray:
    """A photograph without sharp edges."""
    small = np.random.default_rng(3).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def test_json_keeps_a_specification():
    for spec in (RGB, GREY, FASHION_MNIST):
        assert InputSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 2}, "1 channel .* or 3"),
        ({"height": 0}, "height of an image must be 1..4096 pixels, got 0"),
        ({"width": 1.5}, "width of an image must be 1..4096 pixels, got 1.5"),
        ({"width": True}, "width of an image must be"),
        ({"mean": (0.5,)}, r"mean must have 3 finite value\(s\)"),
        ({"std": (0.1, 0.1, float("inf"))}, r"std must have 3 finite value\(s\)"),
        ({"std": (0.1, 0.0, 0.1)}, "std must be above 0"),
        ({"resize": "zoom"}, "resize must be one of trim, fit, crop, stretch, got 'zoom'"),
        ({"resize": "trim"}, "trim makes grey images of 28 x 28 only"),
        ({"polarity": "dark"}, "polarity must be one of any, light-on-dark"),
        ({"crop_fraction": 0}, r"crop fraction must be in \(0, 1\], got 0"),
        ({"depth": 1}, "expected an input specification"),
    ],
)
def test_an_invalid_specification_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        InputSpec.from_json(RGB.to_json() | change)


def test_a_missing_entry_is_refused():
    fields = RGB.to_json()
    del fields["mean"]
    with pytest.raises(ValueError, match="expected an input specification, got one with a bad 'mean'"):
        InputSpec.from_json(fields)


def test_normalization_is_torchvisions():
    pixels_B = np.random.default_rng(4).integers(0, 256, (3, 20, 24, 3), np.uint8)
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(RGB.mean, RGB.std)])
    expected = transform(torch.from_numpy(pixels_B).permute(0, 3, 1, 2))
    found = RGB.normalize(pixels_B)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.allclose(found, expected, atol=1e-6)


def test_fashion_mnist_is_divided_by_255():
    pixels_B = np.random.default_rng(5).integers(0, 256, (2, 28, 28), np.uint8)
    assert np.array_equal(FASHION_MNIST.normalize(pixels_B), pixels_B[:, None] / np.float32(255))


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (48, 40), (30, 300)])
@pytest.mark.parametrize("fraction", [1.0, 0.8])
def test_crop_is_torchvisions_resize_and_centre_crop(size, fraction):
    """Up to what rounding to whole pixels in between changes in a smooth picture."""
    spec = replace(RGB, height=24, crop_fraction=fraction)
    pixels = smooth(*size)
    transform = v2.Compose([
        v2.Resize(round(24 / fraction), interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(24)
    ])  # fmt: skip
    expected = np.asarray(transform(Image.fromarray(pixels)), float)
    found, steps = resize(pixels, spec)
    assert found.shape == spec.pixel_shape
    assert steps == ("cropped", "resized")
    assert np.abs(found - expected).mean() < 6
    assert np.quantile(np.abs(found - expected), 0.95) < 16


@pytest.mark.parametrize("size", [(30, 90), (90, 30), (17, 16), (1, 500)])
def test_fit_shows_all_of_the_image_in_its_middle(size):
    pixels = np.full(size, 200, np.uint8)
    found, steps = resize(pixels, replace(GREY, mean=(0.2,)))
    is_image = found == 200
    assert set(np.unique(found)) <= {200, 51}
    rows, columns = is_image.any(axis=1).sum(), is_image.any(axis=0).sum()
    assert max(rows, columns) == 16
    assert rows / columns == pytest.approx(size[0] / size[1], rel=0.2) or min(rows, columns) == 1
    assert is_image.sum() == rows * columns
    for axis in (0, 1):
        inside = np.flatnonzero(is_image.any(axis=axis))
        assert abs(inside[0] - (15 - inside[-1])) <= 1
    assert steps == (("padded", "resized") if min(rows, columns) < 16 else ("resized",))


def test_stretch_fills_the_input():
    pixels = smooth(50, 90)
    found, _ = resize(pixels, replace(RGB, resize="stretch"))
    expected = Image.fromarray(pixels).resize((24, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(found, np.asarray(expected))


def prepared(image: Image.Image, spec: InputSpec, kind: str = "PNG", **options: object) -> Input:
    upload = Upload.of(encoded(image, kind, **options), ImageLimits(10**6))
    (found,) = prepare_all([decode_image(upload, unit_range=False, spec=spec)], spec=spec)
    return found


RED = (255, 0, 0)
PLAIN = replace(RGB, resize="stretch")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (50, 40), RED), RED),
        (Image.new("RGBA", (50, 40), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (50, 40), (255, 0, 0, 255)), RED),
        (Image.new("L", (50, 40), 77), (77, 77, 77)),
        (Image.new("I;16", (50, 40), 77 * 256), (77, 77, 77)),
        (Image.new("RGB", (50, 40), RED).convert("P"), RED),
        (Image.new("1", (50, 40), 1), (255, 255, 255)),
    ],
    ids=["RGB", "clear", "opaque", "grey", "16 bits", "palette", "1 bit"],
)
def test_every_mode_becomes_rgb(image, expected):
    found = prepared(image, PLAIN)
    assert found.pixels.shape == (20, 24, 3)
    assert (found.pixels == np.array(expected)).all()
    assert "greyscale" not in found.steps


def test_cmyk_becomes_rgb():
    found = prepared(Image.new("CMYK", (50, 40), (0, 255, 255, 0)), PLAIN, "JPEG")
    assert np.abs(found.pixels.astype(int) - RED).max() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_colours_as_pillow_does(orientation):
    image = Image.fromarray(smooth(24, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(image, "PNG", exif=exif)
    spec = replace(RGB, height=24 if orientation < 5 else 20, width=20 if orientation < 5 else 24)
    found = decode_image(Upload.of(file, ImageLimits(10**6)), unit_range=False, spec=spec)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))))
    assert np.array_equal(found.pixels, expected)


def test_an_image_of_the_networks_size_stays_as_it_is():
    pixels = smooth(20, 24)
    found = prepared(Image.fromarray(pixels), RGB)
    assert np.array_equal(found.pixels, pixels)
    assert found.steps == ()


@pytest.mark.parametrize("side", [np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]])
def test_each_side_counts_for_whether_a_border_is_light(side):
    pixels = np.full((20, 20), 110, np.uint8)
    pixels[side] = 255  # with it the mean of the four sides is over 127.5, without it under
    assert prepare(Decoded(pixels, "PNG"), Invert.AUTO, GREY).inverted


@pytest.mark.parametrize(
    ("polarity", "invert", "expected"),
    [
        ("light-on-dark", Invert.AUTO, True), ("light-on-dark", Invert.NO, False), ("light-on-dark", Invert.YES, True),
        ("any", Invert.AUTO, False), ("any", Invert.YES, True),
    ],
)  # fmt: skip
def test_light_borders_are_inverted_where_polarity_asks(polarity, invert, expected):
    paper = np.full((40, 40), 250, np.uint8)
    paper[10:30, 10:30] = 20
    found = prepare(Decoded(paper, "PNG"), invert, replace(GREY, polarity=polarity))
    assert found.inverted == expected
    assert bool(found.pixels[0, 0] < 100) == expected


def test_a_blank_image_is_warned_of():
    found = prepared(Image.new("RGB", (50, 40), RED), PLAIN)
    assert "the image is blank" not in found.warnings  # its channels differ
    assert "the image is blank" in prepared(Image.new("RGB", (50, 40)), PLAIN).warnings


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_colour_profile_other_than_srgb_is_warned_of(kind):
    warnings = []
    for name in (None, "sRGB", "XYZ"):
        profile = name and ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()
        warnings.append(prepared(Image.fromarray(smooth(20, 24)), PLAIN, kind, icc_profile=profile).warnings)
    assert [len(one) for one in warnings] == [0, 0, 1]
    assert "colour profile of the file is ignored" in warnings[2][0]
