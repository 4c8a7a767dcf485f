"""The view for poses of an adopted network."""

import numpy as np
import pytest
import rgb
import torch
from files import png

from model.artifact import ArtifactError, load_artifact, save_compiled
from model.graph import Graph
from model.novelty import FeatureNovelty
from model.session import open_session
from service.inference.limits import ImageLimits
from service.pipeline import Pipeline, Run
from service.schemas.parameters import Parameters
from training.adopt.image_arrays import ArrayImage
from training.adopt.inputs import prepare_image
from training.adopt.novelty import Scored, fit_novelty, measure_novelty
from training.adopt.poses import ORDINARY, PoseFit, as_pixels, as_unit_range, thumbnails
from training.poses import Transforms

COUNT, EPOCHS = 200, 5


def scenes(seed: int, count: int) -> np.ndarray:
    """Images that are bright above and have a red stripe to the left."""
    rng = np.random.default_rng(seed)
    pixels_B = rng.integers(0, 60, (count, *rgb.SPEC.pixel_shape)).astype(np.uint8)
    pixels_B[:, :8] += rng.integers(90, 190, (count, 1, 1, 1), np.uint8)
    pixels_B[:, :, :6, 0] //= 3
    return pixels_B


@pytest.fixture(scope="module")
def engine() -> Graph:
    return rgb.compiled().graph()


@pytest.fixture(scope="module")
def calibration(engine, tmp_path_factory) -> Scored:
    pixels_B = scenes(1, COUNT)
    probs_NC, features_NF = engine.predict_with_features(rgb.SPEC.normalize(pixels_B))
    folder = tmp_path_factory.mktemp("scenes")
    return Scored([ArrayImage(folder, pixels_B, index) for index in range(COUNT)], features_NF, probs_NC)


@pytest.fixture(scope="module")
def novelty(engine, calibration, tmp_path_factory) -> FeatureNovelty:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoseFit.__init__, "__kwdefaults__", {"epochs": EPOCHS})
        return fit_novelty(engine, rgb.SPEC, calibration, 0, folder=tmp_path_factory.mktemp("progress"))


def scores_of(engine, novelty, pixels_B) -> np.ndarray:
    images_B = rgb.SPEC.normalize(pixels_B)
    probs_BC, features_BF = engine.predict_with_features(images_B)
    return novelty.score(features_BF, probs_BC, images_B)


def test_transformed_images_are_flagged_and_ordinary_ones_are_not(engine, calibration, novelty):
    ordinary_B, threshold = scenes(2, 400), novelty.thresholds[0.05]
    assert (scores_of(engine, novelty, ordinary_B) > threshold).mean() == pytest.approx(0.05, abs=0.06)
    transforms, flagged_by_pose = Transforms(5, "border"), []
    for change in (transforms.vary, transforms.transform):
        images_B = rgb.SPEC.normalize(as_pixels(change(as_unit_range(ordinary_B))))
        probs_BC, features_BF = engine.predict_with_features(images_B)
        flagged_by_pose.append((novelty.views(features_BF, probs_BC, images_B)["pose"] > threshold).mean())
    assert flagged_by_pose[1] > 2 * flagged_by_pose[0]
    without = fit_novelty(engine, rgb.SPEC, calibration, 0, folder=None)
    assert without.poses is None
    for name, changed_B in {"upside down": ordinary_B[:, ::-1], "turned": ordinary_B[:, ::-1, ::-1]}.items():
        flagged = (scores_of(engine, novelty, changed_B) > threshold).mean()
        missed = (scores_of(engine, without, changed_B) > without.thresholds[0.05]).mean()
        assert flagged > 0.6, name
        assert missed < 0.4, name


def test_the_score_is_that_of_images_and_features(engine, novelty):
    """As the graph of the view gives it, for each image alone."""
    images_B = rgb.SPEC.normalize(scenes(3, 5))
    _, features_BF = engine.predict_with_features(images_B)
    session = open_session("poses", novelty.poses.content)
    for index in range(5):
        row = slice(index, index + 1)
        (logits_1K,) = session.run(["logits"], {"image": images_B[row], "features": features_BF[row]})
        odds = np.exp(logits_1K[0, 1:].astype(float)).sum() / np.exp(float(logits_1K[0, 0]))
        assert novelty.poses.log_odds(images_B, features_BF)[index] == pytest.approx(np.log(odds), abs=1e-5)
        assert (
            novelty.poses.score(images_B[row], features_BF[row])[0] == novelty.poses.score(images_B, features_BF)[index]
        )
    with pytest.raises(ValueError, match="poses: the features of the images are needed"):
        novelty.poses.score(images_B)


def test_what_the_network_computed_is_read_again(engine, calibration, tmp_path):
    """From the saved parts, with the same bytes; other images have parts of their own."""

    class Refusing:
        def predict_with_features(self, images_B: np.ndarray) -> None:
            raise AssertionError(f"computed again: {len(images_B)} images")

    images, features_NF, others_N = calibration.images[:60], calibration.features_NF[:60], np.linspace(-1, 1, 60)
    view, scores_N = PoseFit(engine, rgb.SPEC, images, tmp_path, epochs=1)(features_NF, others_N)
    again, scores_again_N = PoseFit(Refusing(), rgb.SPEC, images, tmp_path, epochs=1)(features_NF, others_N)
    assert again == view
    assert np.array_equal(scores_again_N, scores_N)
    assert np.median(scores_N) == pytest.approx(0, abs=1e-9)
    inputs_N = rgb.SPEC.normalize(np.stack([prepare_image(image, rgb.SPEC) for image in images]))
    assert not np.isclose(scores_N, view.score(inputs_N, features_NF)).any()  # each by a network that did not see it
    with pytest.raises(AssertionError, match="computed again"):
        PoseFit(Refusing(), rgb.SPEC, images[1:], tmp_path)(features_NF[1:], others_N[1:])


def test_the_card_tells_which_transformed_test_images_are_flagged(engine, calibration, novelty):
    test = Scored(calibration.images[:40], calibration.features_NF[:40], calibration.probs_NC[:40])
    scores_N, found = measure_novelty(engine, rgb.SPEC, novelty, test, {})
    pixels_B = np.stack([prepare_image(image, rgb.SPEC) for image in test.images])
    assert np.allclose(scores_N, scores_of(engine, novelty, pixels_B), atol=1e-6)
    assert found["test images upside down, by a mirror"]["images"] == 40
    mirrored_B = scores_of(engine, novelty, np.ascontiguousarray(pixels_B[:, ::-1]))
    flagged = found["test images upside down, by a mirror"]["flagged at 0.05"]
    assert flagged == (mirrored_B > novelty.thresholds[0.05]).mean()
    turned_B = scores_of(engine, novelty, np.ascontiguousarray(pixels_B[:, ::-1, ::-1]))
    flagged = found["test images turned by 180°"]["flagged at 0.05"]
    assert flagged == pytest.approx((turned_B > novelty.thresholds[0.05]).mean(), abs=0.05)
    assert not any("turned" in name for name in measure_novelty(engine, rgb.SPEC, None, test, {})[1])


def test_an_artifact_keeps_a_view_of_its_features_only(novelty, tmp_path):
    card = {"classes": list(rgb.CLASSES)}
    save_compiled(tmp_path / "right", rgb.compiled(), card, input_spec=rgb.SPEC, novelty=novelty)
    found = load_artifact(tmp_path / "right")
    assert found.novelty.poses == novelty.poses
    assert found.card["novelty"]["poses"]["ordinary"] == ORDINARY
    pipeline, turned = Pipeline(found, ImageLimits(10_000)), np.ascontiguousarray(scenes(6, 1)[0, ::-1, ::-1])
    answer = pipeline.answer(pipeline.accept(png(turned)), Parameters(samples=10), Run()).novelty
    views = novelty.views(
        *reversed(found.engine.predict_with_features(images := rgb.SPEC.normalize(turned[None]))), images
    )
    assert (answer.view, answer.flagged) == ("pose", True)
    assert answer.score == pytest.approx(views["pose"][0], abs=1e-6)

    torch.manual_seed(0)
    other = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(1440, 9), torch.nn.Dropout(0.5), torch.nn.Linear(9, len(rgb.CLASSES))
    )
    compiled = rgb.compile_to_files(other, np.ones((1, *rgb.SPEC.shape), np.float32))
    save_compiled(tmp_path / "wrong", compiled, card, input_spec=rgb.SPEC, novelty=novelty)
    with pytest.raises(ArtifactError, match=r"novelty\.safetensors: poses: expected .*, got .*'features', 160"):
        load_artifact(tmp_path / "wrong")


@pytest.mark.parametrize(("shape", "sides"), [((1, 8, 8), (8, 8)), ((3, 224, 224), (28, 28)), ((3, 60, 100), (30, 50))])
def test_thumbnails_are_means_of_squares(shape, sides):
    images_B = torch.rand(2, *shape)
    found = thumbnails(images_B)
    assert found.shape == (2, shape[0], *sides)
    size = shape[1] // sides[0]
    assert torch.allclose(
        found[:, :, 1, 2], images_B[:, :, size : 2 * size, 2 * size : 3 * size].mean((2, 3)), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 7, 3)])
def test_pixels_survive_the_way_to_the_unit_range_and_back(shape):
    pixels_B = np.random.default_rng(4).integers(0, 256, shape, np.uint8)
    images_B = as_unit_range(pixels_B)
    assert images_B.shape == (2, 3 if len(shape) == 4 else 1, 5, 7)
    assert images_B.min() >= 0
    assert images_B.max() <= 1
    assert np.array_equal(as_pixels(images_B), pixels_B)
