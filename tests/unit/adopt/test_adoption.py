"""What is checked before a network is compiled, and before it is measured."""

import numpy as np
import pytest
from files import png

from training.adopt.adoption import check_classes, check_folder
from training.adopt.errors import ImagesError, OutputError
from training.adopt.inputs import check_images
from training.adopt.stored_images import ImageFile


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


def test_all_files_that_are_no_images_are_named_at_once(tmp_path):
    image = png(np.zeros((4, 4), np.uint8))
    contents = [b"" if index % 2 else image for index in range(14)]
    files = [ImageFile(tmp_path / f"{index}.png") for index in range(14)]
    for file, content in zip(files, contents, strict=True):
        file.path.write_bytes(content)
    check_images(files[::2])
    with pytest.raises(
        ImagesError, match=r"^7 images can't be read: .*/1\.png, .*/9\.png and 2 more \(.*\): remove"
    ) as caught:
        check_images(files)
    assert "\n" not in str(caught.value)
