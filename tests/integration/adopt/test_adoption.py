"""What is checked before a network is compiled, and before it is measured."""

import zlib

import numpy as np
import pytest
import rgb
from files import png
from torch import nn

from model.input_spec import FASHION_MNIST
from training.adopt.adoption import adopt, check_classes, check_folder
from training.adopt.errors import ImagesError, OutputError
from training.adopt.image_arrays import ArrayImage
from training.adopt.inputs import check_images
from training.adopt.labelled_images import LabelledImages
from training.adopt.model_card import Statements
from training.adopt.stored_images import ImageFile


class Uncompilable(nn.Module):
    """A network that must not be run."""

    def forward(self, *_: object) -> None:
        raise AssertionError


@pytest.mark.parametrize("name", ["file", "file/sub/deeper"])
def test_a_file_is_no_folder_for_an_artifact(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"--out .*: .*file is a file: give a folder"):
        check_folder(tmp_path / name)


def test_a_folder_of_an_artifact_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path / "new" / "deeper", tmp_path.relative_to(tmp_path) / "here"):
        check_folder(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("outputs", "classes", "message"),
    [
        (7, 10, "the network has 7 outputs, but there are 10 classes: leave the images"),
        (4, 3, "the network has 4 outputs, but there are 3 classes: name all of them with --classes"),
        (2, 1, "the network has 2 outputs, but there is 1 class: name"),
    ],
)
def test_another_number_of_classes_is_refused(outputs, classes, message):
    with pytest.raises(ImagesError, match=message):
        check_classes(outputs, classes)
    check_classes(outputs, outputs)


def with_broken_pixels() -> bytes:
    """A PNG file of valid structure, whose pixels can't be decompressed."""
    content = bytearray(png(rgb.noise(1, 1)[0]))
    start = content.index(b"IDAT")
    end = start + 4 + int.from_bytes(content[start - 4 : start], "big")
    content[start + 10 : start + 30] = bytes(20)
    content[end : end + 4] = zlib.crc32(content[start:end]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("spec", [FASHION_MNIST, rgb.SPEC])
@pytest.mark.parametrize("bad", [b"", with_broken_pixels()], ids=["empty", "pixels"])
def test_all_images_that_cannot_be_decoded_are_named_at_once(tmp_path, spec, bad):
    image = png(np.zeros((4, 4), np.uint8))
    files = [ImageFile(tmp_path / f"{index}.png") for index in range(14)]
    for index, file in enumerate(files):
        file.path.write_bytes(bad if index % 2 else image)
    check_images(files[::2], spec)
    seen = []
    with pytest.raises(
        ImagesError, match=r"^7 images can't be read: .*/1\.png, .*/9\.png and 2 more \(.*\): remove"
    ) as caught:
        check_images(files, spec, track=lambda indices: (seen.append(index) or index for index in indices))
    assert "\n" not in str(caught.value)
    assert seen == list(range(14))


def test_no_network_is_compiled_for_images_that_cannot_be_decoded(tmp_path):
    """Among the images with classes, and among those of other kinds."""
    good, bad = ArrayImage(tmp_path, rgb.noise(1, 1), 0), ImageFile(tmp_path / "bad.png")
    bad.path.write_bytes(with_broken_pixels())
    for labelled, others in (([good] * 19 + [bad], {}), ([good] * 20, {"strange": [good, bad]})):
        images = LabelledImages(tuple(labelled), np.arange(20) % 7, rgb.CLASSES)
        with pytest.raises(ImagesError, match=r"^1 image can't be read: .*bad\.png \(the image is broken: .*: remove"):
            adopt(
                [Uncompilable()], images, rgb.SPEC, tmp_path / "out",
                fraction=0.5, seed=0, inject=None, poses=True,
                statements=Statements("", "", pictures=True), others=others,
            )  # fmt: skip
        assert not (tmp_path / "out").exists()
