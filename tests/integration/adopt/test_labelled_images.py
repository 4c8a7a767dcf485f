"""Labelled images in folders and tables, their classes, and how they are split."""

from pathlib import Path

import numpy as np
import pytest

from training.adopt.errors import ImagesError
from training.adopt.labelled_images import LabelledImages, find_images, read_classes
from training.adopt.stored_images import ImageFile


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def labels(found: LabelledImages) -> dict[str, str]:
    return {image.path.name: found.classes[label] for image, label in zip(found.images, found.labels_N, strict=True)}


def test_folders_are_classes(tmp_path):
    make(tmp_path, "dog/1.jpg", "dog/deep/2.PNG", "cat/3.webp", "cat/notes.txt", ".hidden/4.png")
    found = find_images(tmp_path)
    assert found.classes == ("cat", "dog")
    assert labels(found) == {"1.jpg": "dog", "2.PNG": "dog", "3.webp": "cat"}
    ordered = find_images(tmp_path, ("dog", "bird", "cat"))
    assert ordered.classes == ("dog", "bird", "cat")
    assert labels(ordered) == labels(found)


def test_files_may_be_named_after_classes(tmp_path):
    make(tmp_path, "n01_tench.jpg", "great white shark_7.jpg", "n02_ostrich.png", "README.md")
    found = find_images(tmp_path, ("ostrich", "great white shark", "tench"))
    assert labels(found) == {
        "n01_tench.jpg": "tench", "great white shark_7.jpg": "great white shark", "n02_ostrich.png": "ostrich",
    }  # fmt: skip
    by_synset = find_images(tmp_path, ("n01", "great_white_shark", "n02_ostrich"))
    assert by_synset.labels_N.tolist() == [1, 0, 2]


def test_a_table_lists_them(tmp_path):
    make(tmp_path, "a/1.jpg", "2.jpg")
    (tmp_path / "list.csv").write_text("path,label\na/1.jpg,dog\n2.jpg,cat\n")
    found = find_images(tmp_path / "list.csv")
    assert labels(found) == {"1.jpg": "dog", "2.jpg": "cat"}


def test_a_table_of_excel_has_a_byte_order_mark(tmp_path):
    make(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text("path,label\n1.jpg,dog\n", encoding="utf-8-sig")
    assert labels(find_images(tmp_path / "list.csv")) == {"1.jpg": "dog"}


@pytest.mark.parametrize("is_table", [False, True])
@pytest.mark.parametrize(
    ("written", "classes", "expected"),
    [
        (range(12), None, list(range(12))),
        ([0, 2, 10], None, [0, 2, 10]),  # classes without images keep their outputs
        ([0, 2, 1], ("ant", "bee", "cat"), [0, 2, 1]),
        ([1, 10, 2], ("2", "10", "1"), [2, 1, 0]),  # names
        (["000", "010", "002"], None, [0, 2, 1]),
        (["10", "9", "z"], None, [0, 1, 2]),
    ],
)
def test_integers_are_indices_unless_they_are_names(tmp_path, written, classes, expected, is_table):
    names = [f"{label}/{place}.jpg" for place, label in enumerate(written)]
    make(tmp_path, *names)
    (tmp_path / "list.csv").write_text(
        "".join(f"{path},{label}\n" for path, label in [("path", "label"), *zip(names, written, strict=True)])
    )
    found = find_images(tmp_path / "list.csv" if is_table else tmp_path, classes)
    by_name = {image.path.stem: label for image, label in zip(found.images, found.labels_N.tolist(), strict=True)}
    assert by_name == {str(place): label for place, label in enumerate(expected)}
    if classes is None and isinstance(written[0], int):
        assert found.classes == tuple(map(str, range(max(written) + 1)))


@pytest.mark.parametrize(
    ("files", "table", "classes", "message"),
    [
        (["dog/1.jpg"], None, ("cat", "hound"), "images of the classes dog, but the classes are cat, hound"),
        (["1.jpg"], None, None, "expected one folder for each class, got files only"),
        (["1.jpg", "dog_2.jpg"], None, ("dog",), r"1\.jpg named after no class; the classes are dog"),
        (["notes.txt"], None, None, "no images found"),
        ([], "path,label\nabsent.jpg,dog\n", None, r"files that don't exist: .*absent\.jpg"),
        ([], "file,class\nabsent.jpg,dog\n", None, "expected the columns path and label, got file, class"),
        ([], "path,label\n", None, "no images found"),
        ([], "", None, "expected the columns path and label, got none"),
        (["1.jpg"], "label,path\ndog,1.jpg\ndog\n", None, r"list\.csv, line 3: no path: complete the line"),
        (["1.jpg"], "path,label\n1.jpg\n", None, r"list\.csv, line 2: no label"),
        (["1.jpg"], "path,label\n1.jpg, \n", None, r"list\.csv, line 2: no label"),
        (["1.jpg"], "path,label\n1.jpg,shark, white\n", None, r"list\.csv, line 2: more than 2 values: quote"),
        (["1.jpg"], "path,label\n1.jpg,4\n", ("cat", "dog"), "labels 4, but there are 2 classes"),
        (["1.jpg"], "path,label\n1.jpg,20261126\n", None, "the label 20261126 is no index of a class"),
    ],
)
def test_images_without_classes_are_refused(tmp_path, files, table, classes, message):
    make(tmp_path, *files)
    source = tmp_path
    if table is not None:
        source = tmp_path / "list.csv"
        source.write_text(table)
    with pytest.raises(ImagesError, match=message) as caught:
        find_images(source, classes)
    assert "\n" not in str(caught.value)


def test_a_path_of_another_kind_is_refused(tmp_path):
    make(tmp_path, "notes.txt")
    with pytest.raises(ImagesError, match="expected a folder of images, a CSV or Parquet file"):
        find_images(tmp_path / "notes.txt")


def test_missing_files_are_named(tmp_path):
    make(tmp_path, "images.npy")
    for message, find in [
        (r"--images .*absent\.csv doesn't exist", lambda: find_images(tmp_path / "absent.csv")),
        (
            r"--labels .*absent\.npy doesn't exist",
            lambda: find_images(tmp_path / "images.npy", None, tmp_path / "absent.npy"),
        ),
        (r"--classes .*absent\.txt doesn't exist", lambda: read_classes(tmp_path / "absent.txt")),
    ]:
        with pytest.raises(ImagesError, match=message):
            find()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n\nb\n", "no empty line"),
        ("a\n", "at least two"),
        ("", "at least two"),
        ("a\nb\na\n", "got a more than once"),
        (f"a\n{'b' * 201}\n", r"may have 200 characters, got 201: b+\.\.\."),
    ],
)
def test_invalid_class_names_are_refused(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ImagesError, match=message):
        read_classes(tmp_path / "classes.txt")


def test_class_names_keep_their_order(tmp_path):
    (tmp_path / "classes.txt").write_text("dog\n great white shark \ncat\n\n")
    assert read_classes(tmp_path / "classes.txt") == ("dog", "great white shark", "cat")


def numbered(count: int) -> tuple[ImageFile, ...]:
    return tuple(ImageFile(Path(f"{index}.png")) for index in range(count))


def number(image: ImageFile) -> int:
    return int(image.path.stem)


@pytest.mark.parametrize("fraction", [0.5, 0.3])
def test_a_split_divides_every_class(fraction):
    labels_N = np.repeat([0, 1, 2], [40, 10, 50])
    files = LabelledImages(numbered(100), labels_N, ("a", "b", "c"))
    first, second = files.split(3, fraction)
    assert sorted(map(number, first.images + second.images)) == list(range(100))
    assert len(first) == round(100 * fraction)
    for label, count in enumerate((40, 10, 50)):
        assert abs((first.labels_N == label).sum() - fraction * count) <= 1.5
    assert all(
        files.labels_N[number(image)] == label for image, label in zip(first.images, first.labels_N, strict=True)
    )
    assert files.split(3, fraction)[0].images == first.images != files.split(4, fraction)[0].images


def test_classes_of_one_image_are_divided_too():
    files = LabelledImages(numbered(200), np.arange(200), tuple("abc"))
    first, second = files.split(0, 0.5)
    assert len(first) == len(second) == 100
    assert 30 < sum(number(image) < 100 for image in first.images) < 70
