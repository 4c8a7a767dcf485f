import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import DataError
from training.ood import DOWNLOADS, download_images, read_images, synthetic_images
from training.vision import torchvision

IMAGES_BHW = np.random.default_rng(95).integers(0, 256, (6, 28, 28), dtype=np.uint8)


def idx(images_BHW: np.ndarray) -> bytes:
    return b"\x00\x00\x08\x03" + np.array(images_BHW.shape, dtype=">u4").tobytes() + images_BHW.tobytes()


def test_images_are_read_from_every_kind_of_file(tmp_path):
    (tmp_path / "plain").write_bytes(idx(IMAGES_BHW))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(IMAGES_BHW)))
    np.save(tmp_path / "array.npy", IMAGES_BHW)
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    for number, pixels in enumerate(IMAGES_BHW):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    for name in ("plain", "packed.gz", "array.npy", "folder"):
        assert np.array_equal(read_images(tmp_path / name), IMAGES_BHW), name


def test_larger_images_of_a_folder_are_scaled(tmp_path):
    Image.new("RGB", (90, 60), (200, 200, 200)).save(tmp_path / "grey.jpg")
    assert (np.abs(read_images(tmp_path).astype(int) - 200) <= 2).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.npy", b"no array"), ("short.gz", gzip.compress(idx(IMAGES_BHW)[:-1])), ("text", b"what?"),
        ("labels", b"\x00\x00\x08\x01" + bytes(9)), ("no.gz", b"packed?"), ("empty", b""),
    ],
)  # fmt: skip
def test_invalid_image_file_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_images(tmp_path / name)


def test_other_shapes_types_folders_and_nothing_are_refused(tmp_path):
    np.save(tmp_path / "floats.npy", IMAGES_BHW / 255)
    np.save(tmp_path / "small.npy", IMAGES_BHW[:, :20])
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "readme.txt").write_text("no image")
    (tmp_path / "nothing").mkdir()
    for name in ("floats.npy", "small.npy", "objects.npy", "texts", "nothing", "missing"):
        with pytest.raises(DataError, match=name):
            read_images(tmp_path / name)


def test_synthetic_images_have_the_named_properties():
    made = synthetic_images(IMAGES_BHW)
    assert np.array_equal(made["inverted"], 255 - IMAGES_BHW)
    assert np.array_equal(np.sort(made["permuted pixels"].reshape(6, -1)), np.sort(IMAGES_BHW.reshape(6, -1)))
    pair = synthetic_images(np.stack([IMAGES_BHW[0], 255 - IMAGES_BHW[0]]))["permuted pixels"]  # both by the same order
    assert np.array_equal(pair[1], 255 - pair[0])
    assert not np.array_equal(pair[0], IMAGES_BHW[0])
    assert (np.ptp(made["blank"], axis=(1, 2)) == 0).all()
    assert made["noise"].std() > 60
    assert all(
        np.array_equal(one, other)
        for one, other in zip(made.values(), synthetic_images(IMAGES_BHW).values(), strict=True)
    )


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize("name", DOWNLOADS)
def test_downloaded_images_are_loaded(name, tmp_path, monkeypatch):
    """Files as torchvision leaves them in the cache; EMNIST's have columns as rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    raw = tmp_path / "mcd" / name / "raw"
    for split, prefix in (("t10k", "test"), ("train", "train")):
        stem = f"emnist-letters-{prefix}" if name == "EMNIST" else split
        stored_BHW = IMAGES_BHW if split == "t10k" else IMAGES_BHW[:1]
        if name == "EMNIST":
            stored_BHW = stored_BHW.transpose(0, 2, 1)
        write_idx(raw / f"{stem}-images-idx3-ubyte", stored_BHW)
        write_idx(raw / f"{stem}-labels-idx1-ubyte", np.ones(len(stored_BHW)))
    assert np.array_equal(download_images(name), IMAGES_BHW)


def test_failed_download_is_an_error_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match=r"^MNIST: can't be downloaded \(.*Connection refused"):
        download_images("MNIST")
