import gzip
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

import training.data
from training.data import CLASSES, DataError, FashionMNIST, Images, hold_out, load_fashion_mnist
from training.vision import torchvision

TRAIN_IMAGES = "train-images-idx3-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"


@pytest.fixture(scope="module")
def plain(fashion: FashionMNIST, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files, not gzipped, written by the format's description."""
    folder = tmp_path_factory.mktemp("plain")
    for prefix, part in (("train", fashion.train), ("t10k", fashion.test)):
        count = len(part)
        images, labels = part.images_B.numpy().tobytes(), part.labels_B.to(torch.uint8).numpy().tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + images)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + labels)
    return folder


@pytest.fixture(scope="module")
def gzipped(fashion: FashionMNIST, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files gzipped, the source's own where it has them so."""
    folder = tmp_path_factory.mktemp("gzipped")
    for file in plain.iterdir():
        original, copy = fashion.source / f"{file.name}.gz", folder / f"{file.name}.gz"
        if original.exists():
            copy.symlink_to(original)
        else:
            copy.write_bytes(gzip.compress(file.read_bytes(), compresslevel=1))
    return folder


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment in which no place but those of the test has data."""
    monkeypatch.setattr(training.data, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


def link(files: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in files.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def replace(folder: Path, name: str, data: bytes) -> None:
    (folder / name).unlink()
    (folder / name).write_bytes(data)


def use_mirror(monkeypatch: pytest.MonkeyPatch, port: int) -> type:
    """Point torchvision's class at a port of this machine."""
    downloader = torchvision.datasets.FashionMNIST
    monkeypatch.setattr(downloader, "mirrors", [f"http://127.0.0.1:{port}/"])
    return downloader


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_the_real_data_has_the_published_sizes_and_types(fashion: FashionMNIST) -> None:
    for part, count in ((fashion.train, 60_000), (fashion.test, 10_000)):
        assert len(part) == count
        assert part.images_B.shape == (count, 28, 28)
        assert part.images_B.dtype == torch.uint8
        assert part.labels_B.shape == (count,)
        assert part.labels_B.dtype == torch.int64


def test_every_class_has_equally_many_images(fashion: FashionMNIST) -> None:
    assert fashion.train.labels_B.bincount().tolist() == [6000] * 10
    assert fashion.test.labels_B.bincount().tolist() == [1000] * 10


def test_class_names_and_labels_belong_together(fashion: FashionMNIST) -> None:
    # Of all ten, sandals have the least on them, and trousers and dresses are the narrowest.
    brightness = {name: fashion.test[fashion.test.labels_B == i].inputs_B.mean() for i, name in enumerate(CLASSES)}
    at_edge = {
        name: fashion.test[fashion.test.labels_B == i].inputs_B[..., [4, 23]].mean() for i, name in enumerate(CLASSES)
    }
    assert min(brightness, key=brightness.__getitem__) == "sandal"
    assert sorted(at_edge, key=at_edge.__getitem__)[:2] == ["trouser", "dress"]


def test_inputs_are_the_bytes_over_255_with_a_channel(fashion: FashionMNIST) -> None:
    part = fashion.test[torch.arange(500)]
    assert part.inputs_B.shape == (500, 1, 28, 28)
    assert part.inputs_B.dtype == torch.float32
    assert (part.inputs_B.min(), part.inputs_B.max()) == (0, 1)
    expected = part.images_B.numpy()[:, None].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(part.inputs_B.numpy(), expected)


@pytest.mark.parametrize("subfolder", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("form", ["plain", "gzipped"])
def test_files_are_read_in_either_form_and_place(
    request: pytest.FixtureRequest, fashion: FashionMNIST, tmp_path: Path, form: str, subfolder: str
) -> None:
    place = link(request.getfixturevalue(form), tmp_path / "named" / subfolder)
    found = load_fashion_mnist(tmp_path / "named", environ={}, download=False)
    assert found.source == place
    for part, expected in ((found.train, fashion.train), (found.test, fashion.test)):
        assert torch.equal(part.images_B, expected.images_B)
        assert torch.equal(part.labels_B, expected.labels_B)


def test_gzipped_and_plain_files_may_be_mixed(plain: Path, gzipped: Path, tmp_path: Path) -> None:
    folder = link(plain, tmp_path / "named")
    (folder / TEST_LABELS).unlink()
    (folder / f"{TEST_LABELS}.gz").symlink_to(gzipped / f"{TEST_LABELS}.gz")
    assert load_fashion_mnist(folder, environ={}, download=False).source == folder


def test_a_folder_that_is_given_wins_over_all_others(plain: Path, nowhere: dict[str, str], tmp_path: Path) -> None:
    given, named = link(plain, tmp_path / "given"), link(plain, tmp_path / "named")
    link(plain, tmp_path / "debian")
    link(plain, tmp_path / "cache" / "mcd")
    environ = {**nowhere, "MCD_DATA_DIR": str(named)}
    assert load_fashion_mnist(given, environ=environ).source == given
    assert load_fashion_mnist(str(given), environ=environ).source == given


def test_a_folder_named_in_the_environment_wins_over_found_ones(
    plain: Path, nowhere: dict[str, str], tmp_path: Path
) -> None:
    named = link(plain, tmp_path / "named")
    link(plain, tmp_path / "debian")
    link(plain, tmp_path / "cache" / "mcd")
    assert load_fashion_mnist(environ={**nowhere, "MCD_DATA_DIR": str(named)}).source == named


def test_debians_folder_wins_over_the_cache(plain: Path, nowhere: dict[str, str], tmp_path: Path) -> None:
    debian = link(plain, tmp_path / "debian")
    link(plain, tmp_path / "cache" / "mcd")
    assert load_fashion_mnist(environ=nowhere).source == debian


def test_the_cache_is_found_without_a_download(plain: Path, nowhere: dict[str, str], tmp_path: Path) -> None:
    cache = link(plain, tmp_path / "cache" / "mcd" / "FashionMNIST" / "raw")
    assert load_fashion_mnist(environ=nowhere, download=False).source == cache


def test_default_cache_is_in_the_home_folder(plain: Path, tmp_path: Path) -> None:
    cache = link(plain, tmp_path / "home" / ".cache" / "mcd")
    assert load_fashion_mnist(environ={}, download=False).source == cache


@pytest.mark.parametrize("by_environment", [False, True])
def test_named_folder_without_data_is_an_error(
    plain: Path, nowhere: dict[str, str], tmp_path: Path, by_environment: bool
) -> None:
    link(plain, tmp_path / "cache" / "mcd")
    debian = link(plain, tmp_path / "debian")
    empty = tmp_path / "empty"
    empty.mkdir()
    given, named = (None, empty) if by_environment else (empty, debian)
    with pytest.raises(DataError, match=rf"not found in {empty} \(download: not tried\)"):
        load_fashion_mnist(given, environ={**nowhere, "MCD_DATA_DIR": str(named)})


def test_a_folder_that_lacks_one_file_has_no_data(plain: Path, tmp_path: Path) -> None:
    folder = link(plain, tmp_path / "named")
    (folder / TEST_LABELS).unlink()
    with pytest.raises(DataError, match=f"not found in {folder}"):
        load_fashion_mnist(folder, environ={})


def test_one_error_names_every_place_and_every_remedy(nowhere: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_fashion_mnist(environ=nowhere, download=False)
    cache = tmp_path / "cache" / "mcd"
    for part in (
        f"not found in {tmp_path / 'debian'}, {cache} (download: not tried)",
        "--data",
        "MCD_DATA_DIR",
        "apt-get install dataset-fashion-mnist",
        "four .gz files of github.com/zalandoresearch/fashion-mnist",
        f"into {cache}",
        "go online",
    ):
        assert part in str(error.value)


def test_failed_download_is_reported_with_the_remedies(
    nowhere: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = closed_port()
    use_mirror(monkeypatch, port)
    with pytest.raises(DataError, match=rf"(?s)download: failed, .*127\.0\.0\.1:{port}.*Remedies: .*go online"):
        load_fashion_mnist(environ=nowhere)


def test_cache_that_cannot_be_created_is_reported_with_the_remedies(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"(?s)download: failed, .*Not a directory.*Remedies: "):
        load_fashion_mnist(environ={"XDG_CACHE_HOME": str(tmp_path / "file")})


def test_missing_data_is_downloaded_into_the_cache(
    fashion: FashionMNIST, gzipped: Path, nowhere: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Debian compressed the files again, so that their hashes differ from torchvision's.
    hashes = [
        (file.name, hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()) for file in gzipped.iterdir()
    ]
    with serving(gzipped) as port:
        monkeypatch.setattr(use_mirror(monkeypatch, port), "resources", hashes)
        found = load_fashion_mnist(environ=nowhere)
    assert found.source == tmp_path / "cache" / "mcd" / "FashionMNIST" / "raw"
    assert torch.equal(found.test.images_B, fashion.test.images_B)


def test_a_truncated_gzip_file_is_refused(plain: Path, gzipped: Path, tmp_path: Path) -> None:
    folder = link(plain, tmp_path / "named")
    (folder / TEST_IMAGES).unlink()
    data = (gzipped / f"{TEST_IMAGES}.gz").read_bytes()
    (folder / f"{TEST_IMAGES}.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"{TEST_IMAGES}\.gz: expected an IDX file, got one that can't be read"):
        load_fashion_mnist(folder, environ={})


@pytest.mark.parametrize(
    "data",
    [b"", b"no gzip", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20],
    ids=["empty", "other bytes", "a header and no deflate stream"],
)
def test_invalid_gzip_file_is_refused(plain: Path, tmp_path: Path, data: bytes) -> None:
    folder = link(plain, tmp_path / "named")
    (folder / TEST_LABELS).unlink()
    (folder / f"{TEST_LABELS}.gz").write_bytes(data)
    with pytest.raises(DataError, match=rf"{TEST_LABELS}\.gz: expected "):
        load_fashion_mnist(folder, environ={})


@pytest.mark.parametrize(
    "distort",
    [
        pytest.param(lambda data: data[:-1], id="a byte short"),
        pytest.param(lambda data: data + b"\0", id="a byte long"),
        pytest.param(lambda data: data[:0], id="empty"),
        pytest.param(lambda data: struct.pack(">4B3I", 0, 0, 13, 3, 10_000, 28, 28) + data[16:], id="of floats"),
        pytest.param(lambda data: struct.pack(">4B3I", 0, 0, 8, 3, 10_000, 14, 56) + data[16:], id="of another shape"),
        pytest.param(lambda data: struct.pack("<4B3I", 0, 0, 8, 3, 10_000, 28, 28) + data[16:], id="little-endian"),
    ],
)
def test_a_file_of_wrong_header_or_length_is_refused(
    plain: Path, tmp_path: Path, distort: Callable[[bytes], bytes]
) -> None:
    folder = link(plain, tmp_path / "named")
    replace(folder, TEST_IMAGES, distort((plain / TEST_IMAGES).read_bytes()))
    with pytest.raises(
        DataError, match=rf"{TEST_IMAGES}: expected bytes in IDX format of shape \(10000, 28, 28\), got \d+ other bytes"
    ):
        load_fashion_mnist(folder, environ={})


@pytest.mark.parametrize("label", [3, 10])
def test_unbalanced_labels_are_refused(plain: Path, tmp_path: Path, label: int) -> None:
    folder = link(plain, tmp_path / "named")
    data = bytearray((plain / TEST_LABELS).read_bytes())
    data[8 + data[8:].index(0)] = label
    replace(folder, TEST_LABELS, bytes(data))
    with pytest.raises(DataError, match=rf"{TEST_LABELS}: expected equally many labels of 10 classes, got \[999, "):
        load_fashion_mnist(folder, environ={})


def test_two_exchanged_labels_are_refused(plain: Path, tmp_path: Path) -> None:
    folder = link(plain, tmp_path / "named")
    data = bytearray((plain / TEST_LABELS).read_bytes())
    one, other = 8 + data[8:].index(3), 8 + data[8:].index(7)
    data[one], data[other] = 7, 3
    replace(folder, TEST_LABELS, bytes(data))
    with pytest.raises(DataError, match=rf"{TEST_LABELS}: expected contents of sha256 3d0e6c6e\w+, got \w+"):
        load_fashion_mnist(folder, environ={})


def test_one_changed_pixel_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = link(plain, tmp_path / "named")
    data = bytearray((plain / TEST_IMAGES).read_bytes())
    data[-1] ^= 1
    replace(folder, TEST_IMAGES, bytes(data))
    with pytest.raises(DataError, match=rf"{TEST_IMAGES}: expected contents of sha256 c867c93f\w+, got \w+"):
        load_fashion_mnist(folder, environ={})


def numbered(each: int) -> Images:
    """Labels in no order; each image tells its own number."""
    labels = torch.arange(10).repeat(each)[torch.randperm(10 * each, generator=torch.Generator().manual_seed(3))]
    return Images(torch.arange(10 * each)[:, None, None].expand(-1, 28, 28), labels)


def numbers(images: Images) -> list[int]:
    return images.images_B[:, 0, 0].tolist()


def test_a_split_is_disjoint_and_complete() -> None:
    train, held_out = hold_out(numbered(30), held_out=70, seed=5)
    assert (len(train), len(held_out)) == (230, 70)
    assert sorted(numbers(train) + numbers(held_out)) == list(range(300))


def test_a_split_holds_out_equally_many_of_each_class() -> None:
    train, held_out = hold_out(numbered(30), held_out=70, seed=5)
    assert held_out.labels_B.bincount().tolist() == [7] * 10
    assert train.labels_B.bincount().tolist() == [23] * 10


def test_a_split_that_cant_be_even_is_refused() -> None:
    with pytest.raises(ValueError, match="held_out must be a multiple of 10, got 25"):
        hold_out(numbered(30), held_out=25, seed=5)


def test_a_split_keeps_images_and_labels_together() -> None:
    images = numbered(30)
    for part in hold_out(images, held_out=70, seed=5):
        assert part.labels_B.tolist() == images.labels_B[numbers(part)].tolist()


def test_the_same_seed_splits_the_same_and_another_differently() -> None:
    images = numbered(30)
    first, again, other = (numbers(hold_out(images, held_out=70, seed=seed)[1]) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_a_split_neither_reads_nor_moves_the_global_generator() -> None:
    images = numbered(30)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = numbers(hold_out(images, held_out=70, seed=5)[1])
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert numbers(hold_out(images, held_out=70, seed=5)[1]) == first


def test_every_image_has_its_chance_to_be_held_out() -> None:
    held_out = [0] * 100
    for seed in range(400):
        for number in numbers(hold_out(numbered(10), held_out=50, seed=seed)[1]):
            held_out[number] += 1
    # 400 draws of probability 1/2: standard deviation 10; 5 of them for 100 images.
    assert all(abs(count - 200) < 50 for count in held_out)


def test_the_real_data_splits_evenly(fashion: FashionMNIST) -> None:
    train, held_out = hold_out(fashion.train, held_out=5_000, seed=0)
    assert train.labels_B.bincount().tolist() == [5_500] * 10
    assert held_out.labels_B.bincount().tolist() == [500] * 10


def test_moving_to_a_device_keeps_the_values() -> None:
    images = numbered(1)
    moved = images.to(torch.device("cpu"))
    assert torch.equal(moved.images_B, images.images_B)
    assert torch.equal(moved.labels_B, images.labels_B)


def test_the_process_environment_is_the_default(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = link(plain, tmp_path / "named")
    monkeypatch.setitem(os.environ, "MCD_DATA_DIR", str(named))
    assert load_fashion_mnist(download=False).source == named
