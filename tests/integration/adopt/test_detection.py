"""How an adoption measures its novelty score on images of other kinds."""

import numpy as np
import pytest
import rgb
from PIL import Image

from model import load_artifact
from model.card_page.contents import detection_table
from training.adopt.detection import measure_other_images, prepared, read_other_images
from training.adopt.errors import ImagesError
from training.adopt.stored_images import as_png


@pytest.fixture(scope="module")
def artifact(rgb_folder):
    return load_artifact(rgb_folder)


def scores_of(artifact, pixels_B: np.ndarray) -> np.ndarray:
    images_B = rgb.SPEC.normalize(pixels_B)
    probs_BC, features_BF = artifact.engine.predict_with_features(images_B)
    return artifact.novelty.score(features_BF, probs_BC, images_B)


def test_folders_and_arrays_are_found_and_long_ones_thinned_out(tmp_path):
    (tmp_path / "folder" / "below").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "below/c.webp", "notes.txt"):
        (tmp_path / "folder" / name).write_bytes(as_png(np.zeros((4, 4), np.uint8)))
    np.save(tmp_path / "many.npy", np.zeros((2500, 2, 2), np.uint8))
    found = read_other_images([f"one={tmp_path / 'folder'}", f"many={tmp_path / 'many.npy'}"])
    assert [image.path.name for image in found["one"]] == ["a.JPG", "b.png", "c.webp"]
    indices = [image.index for image in found["many"]]
    assert len(indices) == 1000
    assert (indices[0], indices[-1]) == (0, 2497)
    assert set(np.diff(indices)) == {2, 3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["folder"], "must be NAME=PATH"),
        (["=x"], "must be NAME=PATH"),
        (["a={}/one.npy", "a={}/one.npy"], "each name once"),
        (["a={}/empty"], "empty: no images found"),
        (["a={}/none"], "expected a folder of images, or an .npy or IDX file"),
        (["a={}/flat.npy"], "expected images as uint8"),
    ],
)
def test_other_arguments_are_refused(tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "one.npy", np.zeros((1, 2, 2), np.uint8))
    np.save(tmp_path / "flat.npy", np.zeros(4, np.uint8))
    with pytest.raises(ImagesError, match=message):
        read_other_images([word.format(tmp_path) for word in words])


def test_each_kind_is_scored_as_the_service_scores_it(artifact, tmp_path):
    usual_B, flat_B = rgb.noise(90, 80), np.full((30, *rgb.SPEC.pixel_shape), 128, np.uint8)
    for index, pixels in enumerate(flat_B):
        Image.fromarray(pixels).resize((240, 200)).save(tmp_path / f"{index}.png")
    inside_N, outside_N = scores_of(artifact, usual_B), scores_of(artifact, flat_B)
    found = measure_other_images(
        artifact.engine,
        artifact.novelty,
        rgb.SPEC,
        inside_N,
        prepared(read_other_images([f"flat={tmp_path}"]), rgb.SPEC),
    )
    assert list(found) == ["noise", "flat"]
    assert [row["images"] for row in found.values()] == [100, 30]
    # The probability that an image of the other kind has the higher score.
    assert found["flat"]["auroc"] == pytest.approx((outside_N[:, None] > inside_N).mean(), abs=1e-9)
    flagged = (outside_N > artifact.novelty.thresholds[0.05]).mean()
    assert found["flat"]["flagged at 0.05"] == pytest.approx(flagged, abs=1e-9)
    assert found["noise"]["auroc"] == pytest.approx(0.5, abs=0.15)  # the network's own images are noise
    assert "flagged at 0.001" not in found["flat"]  # too few images for such a threshold

    table = detection_table({"metrics": {"ood": found}})
    assert [row[:2] for row in table.rows] == [["noise", "100"], ["flat", "30"]]
    assert table.rows[1][2] == f"{found['flat']['auroc']:.3f}"
    assert table.rows[1][4] == f"{100 * flagged:.1f} %"
