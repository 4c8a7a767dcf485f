"""Example images of artifacts: written and read, chosen among test images, refused if they are others than expected."""

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rgb
from PIL import Image

from model import ArtifactError, load_artifact, save_compiled
from model.artifact import CARD
from model.examples import MAX_EXAMPLES, Example
from training.adopt.examples import choose_examples
from training.adopt.labelled_images import LabelledImages
from training.data import CLASSES
from training.examples import make_example

RNG = np.random.default_rng(61)


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def pixels_of(example: Example) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(example.content)))


@pytest.fixture(scope="module")
def compiled():
    return rgb.compiled()


def save(folder: Path, compiled, examples: list[Example]) -> Path:
    save_compiled(folder, compiled, {"classes": list(rgb.CLASSES)}, input_spec=rgb.SPEC, examples=examples)
    return folder


def test_examples_are_read_as_they_were_written_and_replace_older_ones(tmp_path, compiled):
    for count in (MAX_EXAMPLES, 3, 0):
        pixels_B = noise((count, *rgb.SPEC.pixel_shape))
        names = [f"../{place} <b>\n ä" for place in range(count)]
        save(tmp_path, compiled, [make_example(*one) for one in zip(names, pixels_B, strict=True)])
        examples = load_artifact(tmp_path).examples
        assert [example.name for example in examples] == names
        assert np.array_equal([pixels_of(one) for one in examples], pixels_B) or not count
        assert len(list(tmp_path.rglob("*.png"))) == count


def test_the_embedded_network_has_the_first_test_image_of_each_class(fashion):
    labels = fashion.test.labels_B.tolist()
    examples = load_artifact().examples
    assert [example.name for example in examples] == [CLASSES[label] for label in dict.fromkeys(labels)]
    for example in examples:
        first = fashion.test.images_B[labels.index(CLASSES.index(example.name))].numpy()
        assert np.array_equal(pixels_of(example), first)


def change(folder: Path, **fields: object) -> None:
    """Change the first example's entry in the card."""
    card = json.loads((folder / CARD).read_text())
    card["examples"][0].update(fields)
    (folder / CARD).write_text(json.dumps(card))


def replace(folder: Path, content: bytes) -> None:
    """Another file that the card has the hash of."""
    (folder / "examples" / "0.png").write_bytes(content)
    change(folder, sha256=hashlib.sha256(content).hexdigest())


def png(shape: tuple[int, ...]) -> bytes:
    return make_example("", noise(shape)).content


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda folder: (folder / "examples" / "0.png").write_bytes(b""),
            r"0\.png: expected sha256 \w{64}, got \w{64}",
        ),
        (lambda folder: (folder / "examples" / "0.png").unlink(), r"0\.png: expected a readable file"),
        (lambda folder: replace(folder, png((24, 20, 3))), "RGB PNG of 24 x 20 pixels and 8 bits"),
        (lambda folder: replace(folder, png((20, 24))), "RGB PNG of 24 x 20 pixels and 8 bits"),
        (lambda folder: replace(folder, b"GIF89a" + bytes(100)), "RGB PNG of 24 x 20 pixels and 8 bits"),
        (lambda folder: replace(folder, b""), "RGB PNG of 24 x 20 pixels and 8 bits"),
        (lambda folder: replace(folder, png((20, 24, 3)) + bytes(20_000)), r"0\.png: expected at most 19264 bytes"),
        (lambda folder: change(folder, file="../../0.png"), r"expected the file examples/0\.png, got \.\./"),
        (lambda folder: change(folder, file=1), "expected the texts file, name, sha256"),
        (lambda folder: change(folder, url="x"), "expected the texts file, name, sha256"),
        (lambda folder: change(folder, name=""), "expected a name of 1 to 200 characters, got 0"),
        (lambda folder: change(folder, name="x" * 201), "expected a name of 1 to 200 characters, got 201"),
    ],
)
def test_other_examples_are_refused(tmp_path, compiled, damage, reason):
    save(tmp_path, compiled, [make_example("a", noise(rgb.SPEC.pixel_shape))])
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=reason):
        load_artifact(tmp_path)


@pytest.mark.parametrize("entries", [{}, "x", None, [1], [{}], [{"file": "examples/0.png"}] * 11])
def test_a_list_of_another_form_is_refused(tmp_path, compiled, entries):
    save(tmp_path, compiled, [])
    card = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps(card | {"examples": entries}))
    with pytest.raises(ArtifactError, match="examples: expected "):
        load_artifact(tmp_path)


@pytest.mark.parametrize(
    ("examples", "reason"),
    [
        ([make_example("a", noise((28, 28)))], "RGB PNG of 24 x 20 pixels"),
        ([make_example("a", noise((20, 24, 3)))] * 11, "at most 10 examples"),
    ],
)
def test_other_examples_are_not_written(tmp_path, compiled, examples, reason):
    with pytest.raises(ArtifactError, match=reason):
        save(tmp_path / "artifact", compiled, examples)
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("counts", [[40] * 30, [40] * 3, [1, 90, 1, 9], [4], [1] * 1000])
def test_examples_are_of_as_many_classes_as_possible(counts):
    labels_N = np.repeat(np.arange(len(counts)), counts)
    files = LabelledImages(
        tuple(Path(str(place)) for place in range(len(labels_N))), labels_N, tuple(f"c{place}" for place in range(1001))
    )

    def prepare(path: Path) -> np.ndarray:
        return np.full((2, 3), int(path.name) % 251, np.uint8)

    chosen = choose_examples(files, prepare, seed=3)
    assert len(chosen) == min(MAX_EXAMPLES, len(labels_N))
    assert chosen == choose_examples(files, prepare, seed=3)
    found = Counter(example.name for example in chosen)
    assert len(found) == min(MAX_EXAMPLES, len(counts))
    fair = {f"c{label}": count for label, count in enumerate(counts)}
    for name, count in found.items():  # no class has two more than another one that has images left
        assert all(count <= found[other] + 1 or found[other] == fair[other] for other in found), name
    if len(labels_N) > 2 * MAX_EXAMPLES:
        assert chosen != choose_examples(files, prepare, seed=4)


def test_examples_are_the_prepared_images_of_the_classes_they_are_named_after(tmp_path):
    pixels_N = noise((12, 6, 5, 3))
    labels_N = np.arange(12) % 4
    paths = tuple(tmp_path / f"{place}.png" for place in range(12))
    by_path = dict(zip(paths, pixels_N, strict=True))
    chosen = choose_examples(LabelledImages(paths, labels_N, ("a", "", "x" * 300, "d")), by_path.__getitem__, seed=0)
    names = ("a", "no name", "x" * 200, "d")
    for example in chosen:
        (place,) = np.flatnonzero((pixels_N == pixels_of(example)).all((1, 2, 3)))
        assert example.name == names[labels_N[place]]
