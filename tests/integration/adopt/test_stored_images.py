"""Images in files, arrays and tables are the same images, prepared as the service prepares a file of them."""

import gzip
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rgb
from files import encoded, png
from PIL import Image

from model.input_spec import InputSpec
from service.inference.errors import ImageError
from training.adopt.errors import ImagesError
from training.adopt.inputs import prepare_image
from training.adopt.labelled_images import find_images
from training.adopt.stored_images import ImageFile

RNG = np.random.default_rng(90)
GREY_NHW = RNG.integers(0, 256, (30, 22, 18), np.uint8)
RGB_NHWC = RNG.integers(0, 256, (30, 22, 18, 3), np.uint8)
LABELS_N = RNG.integers(0, 4, 30)
SPECS = [
    rgb.SPEC,
    InputSpec(channels=1, height=16, width=16, mean=(0,), std=(1,), resize="fit", polarity="light-on-dark"),
    InputSpec(channels=1, height=28, width=28, mean=(0,), std=(1,), resize="trim", polarity="light-on-dark"),
]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def parquet(path, images: list, labels=LABELS_N, **options):
    table = pa.table({"image": images, "label": list(labels)})
    pq.write_table(table, path, **options)
    return path


def stored(folder, kind: str, pixels: np.ndarray) -> tuple:
    """Write images of a kind, and return what `find_images` takes: images, no classes, and labels."""
    source, labels = folder / "images", None
    contents = [png(one) for one in pixels]
    if kind.startswith("npy"):
        array = {"npy": pixels, "npy of floats": pixels / np.float32(255)}.get(kind, pixels[..., None])
        source, labels = folder / "images.npy", folder / "classes.npy"
        np.save(source, array)
        np.save(labels, LABELS_N)
    elif kind == "idx":
        source = folder / "some-images-idx3-ubyte"
        source.write_bytes(idx(pixels))
        (folder / "some-labels-idx1-ubyte").write_bytes(idx(LABELS_N))
    elif kind == "idx.gz":
        source, labels = folder / "some-images-idx3-ubyte.gz", folder / "labels-idx1-ubyte.gz"
        source.write_bytes(gzip.compress(idx(pixels)))
        labels.write_bytes(gzip.compress(idx(LABELS_N)))
    elif kind == "parquet":
        source = parquet(folder / "images.parquet", contents, row_group_size=7)
    elif kind == "parquet of structs":
        source = parquet(folder / "images.parquet", [{"bytes": one, "path": None} for one in contents])
    else:
        names = [f"{index}.png" for index in range(len(pixels))]
        for name, content in zip(names, contents, strict=True):
            (folder / name).write_bytes(content)
        if kind == "parquet of paths":
            return parquet(folder / "images.parquet", names), None, None
        source = folder / "images.csv"
        rows = [f"{name},{label}" for name, label in zip(names, LABELS_N, strict=True)]
        source.write_text("\n".join(["path,label", *rows]))
    return source, None, labels


KINDS = ["npy", "npy of floats", "parquet", "parquet of structs", "parquet of paths", "csv"]
OF_GREY = ["npy of one channel", "idx", "idx.gz"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    ("kind", "pixels"),
    [(kind, RGB_NHWC) for kind in KINDS] + [(kind, GREY_NHW) for kind in [*KINDS, *OF_GREY]],
)
def test_images_and_labels_are_those_that_were_stored(tmp_path, kind, pixels, spec):
    labelled = find_images(*stored(tmp_path, kind, pixels))
    assert labelled.classes == ("0", "1", "2", "3")
    assert labelled.labels_N.tolist() == LABELS_N.tolist()
    assert len({str(image.identity()) for image in labelled.images}) == len(pixels)
    files = tmp_path / "files"
    files.mkdir()
    for index in (0, 29, 8, 8, 3, 20):  # forward and back
        path = files / f"{index}.png"
        path.write_bytes(encoded(Image.fromarray(pixels[index])))
        expected = prepare_image(ImageFile(path), spec)
        assert np.array_equal(prepare_image(labelled.images[index], spec), expected)


def test_a_table_is_never_in_memory_as_a_whole(tmp_path):
    contents = [RNG.bytes(100_000) for _ in range(300)]
    path = parquet(tmp_path / "large.parquet", contents, np.zeros(300, np.int64), row_group_size=20)
    labelled = find_images(path, ("a", "b"))
    before, largest = pa.total_allocated_bytes(), 0
    for image, content in zip(labelled.images, contents, strict=True):
        assert image.read() == content
        largest = max(largest, pa.total_allocated_bytes() - before)
    assert largest < path.stat().st_size / 4


def test_indices_are_those_of_the_named_classes(tmp_path):
    source, _, labels = stored(tmp_path, "npy", GREY_NHW)
    named = find_images(source, ("e", "d", "c", "b", "a"), labels)
    assert named.classes == ("e", "d", "c", "b", "a")
    assert named.labels_N.tolist() == LABELS_N.tolist()
    np.save(labels, np.array(["ab"[label % 2] for label in LABELS_N]))
    assert find_images(source, None, labels).classes == ("a", "b")


def refused(message: str, *arguments: object) -> None:
    with pytest.raises(ImagesError, match=message) as caught:
        find_images(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "labels", "message"),
    [
        (GREY_NHW[0], LABELS_N, r"expected images as uint8, .* got uint8 of shape \(22, 18\)"),
        (RGB_NHWC.transpose(0, 3, 1, 2), LABELS_N, r"expected images .* got uint8 of shape \(30, 3, 22, 18\)"),
        (GREY_NHW.astype(np.int32), LABELS_N, "expected images .* got int32"),
        (GREY_NHW[:0], LABELS_N, "expected images .* got uint8 of shape"),
        (GREY_NHW, LABELS_N[:-1], r"labels\.npy: 29 labels, but .* has 30 images"),
        (GREY_NHW, LABELS_N / 2, "expected a label for each image, .* got float64"),
        (GREY_NHW, LABELS_N[:, None], r"expected a label for each image, .* got int64 of shape \(30, 1\)"),
        (GREY_NHW, LABELS_N - 1, "labels -1, but indices of classes start at 0"),
        (GREY_NHW, np.array([object()] * 30), r"labels\.npy: expected an \.npy file of numbers"),
        (b"no array", LABELS_N, r"images\.npy: expected an \.npy file of numbers"),
        (GREY_NHW, None, "name the file of its labels with --labels"),
    ],
)
def test_arrays_of_something_else_are_refused(tmp_path, array, labels, message):
    source = tmp_path / "images.npy"
    if isinstance(array, bytes):
        source.write_bytes(array)
    else:
        np.save(source, array)
    if labels is not None:
        np.save(tmp_path / "labels.npy", labels)
    refused(message, source, None, None if labels is None else tmp_path / "labels.npy")


def test_numbers_out_of_range_are_refused(tmp_path):
    np.save(tmp_path / "images.npy", GREY_NHW.astype(np.float32))
    np.save(tmp_path / "labels.npy", LABELS_N)
    labelled = find_images(tmp_path / "images.npy", None, tmp_path / "labels.npy")
    with pytest.raises(ImagesError, match=r"images\.npy, image 4: floating-point pixels must be in \[0, 1\]"):
        prepare_image(labelled.images[4], rgb.SPEC)


def test_files_of_other_arrays_are_refused(tmp_path):
    source, _, _ = stored(tmp_path, "idx", GREY_NHW)
    refused("labels 2, 3, but there are 2 classes", source, ("a", "b"))
    refused(r"some-images-idx3-ubyte: expected bytes in IDX format of 1 axis", source, None, source)
    refused("--labels is for images in an .npy or IDX file", tmp_path, None, source)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [b""], "label": [0]}, "expected the columns image or path, and label, got picture, label"),
        ({"image": [b""], "class": [0]}, "expected the columns image or path, and label, got image, class"),
        ({"image": [[1, 2]], "label": [0]}, "must have encoded images or paths of files, got list"),
        ({"image": [b"", b""], "label": [0, None]}, "must have names or indices of classes, but not row 1"),
        ({"image": [b"", b""], "label": [True, False]}, "must have names or indices of classes, but not row 0, row 1"),
        ({"path": ["absent.png"], "label": ["a"]}, r"files that don't exist: .*absent\.png"),
        (None, "expected a Parquet file, got one that can't be read"),
    ],
)
def test_tables_of_something_else_are_refused(tmp_path, columns, message):
    path = tmp_path / "images.parquet"
    if columns is None:
        path.write_bytes(b"no table")
    else:
        pq.write_table(pa.table(columns), path)
    refused(message, path)


def test_rows_without_an_image_are_named(tmp_path):
    path = parquet(tmp_path / "images.parquet", [png(GREY_NHW[0]), None, b"no image"], [0, 1, 1])
    images = find_images(path).images
    with pytest.raises(ImagesError, match=r"images\.parquet, row 1: the image is missing"):
        prepare_image(images[1], rgb.SPEC)
    with pytest.raises(ImageError, match=r"images\.parquet, row 2: .*: remove the image, or replace it"):
        prepare_image(images[2], rgb.SPEC)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("spec", SPECS[:2])
def test_files_of_any_mode_and_size_become_pixels_of_the_network(tmp_path, mode, spec):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image = Image.fromarray(RGB_NHWC[0]) if mode != "I;16" else Image.fromarray(GREY_NHW[0].astype(np.uint16) * 257)
    (image if mode == "I;16" else image.convert(mode)).save(path)
    pixels = prepare_image(ImageFile(path), spec)
    assert (pixels.shape, pixels.dtype) == (spec.pixel_shape, np.uint8)
    assert pixels.std() > 10
