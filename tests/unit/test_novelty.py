from dataclasses import replace

import numpy as np
import pytest
import torch
from bars import images
from PIL import Image
from scipy.spatial.distance import mahalanobis
from stages import prepare
from torch import nn

import training.novelty
from model import MLPConfig, build_mlp, load_artifact
from model.artifact import ArtifactError, save_artifact
from model.network.chain import LiveChain
from model.novelty import FALSE_ALARM_RATES, FEATURES, ClassGaussians, Novelty, _multiply_sparse_row, extract_features
from service.inference.general_decoder import Decoded
from training.data import as_inputs
from training.novelty import augmented_copies, fit_novelty

CONFIG = MLPConfig(hidden=(8, 6), dropout=(0.1, 0.4), classes=3)
PLAIN = replace(CONFIG, dropout=(0.0, 0.0))  # nothing is compiled
SIZES = {"image": 6, "first layer": 8, "activations": 14}


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(81)
    return build_mlp(CONFIG)


@pytest.fixture
def images_B() -> np.ndarray:
    images_B = np.random.default_rng(82).random((5, 1, 28, 28), np.float32)
    images_B[images_B < 0.3] = 0
    return images_B


def gaussians(rng: np.random.Generator, size: int) -> ClassGaussians:
    return ClassGaussians(rng.normal(size=(size, size)), rng.normal(size=(3, size)), median=2.0, percentile_99=7.0)


@pytest.fixture
def novelty() -> Novelty:
    rng = np.random.default_rng(83)
    return Novelty(
        {name: gaussians(rng, size) for name, size in SIZES.items()},
        dict(zip(FALSE_ALARM_RATES, (None, 1.2, 0.8), strict=True)),
    )


def highest(views: dict[str, np.ndarray]) -> float:
    """The score of one image, of its views."""
    return max(float(score_1[0]) for score_1 in views.values())


def test_the_distance_is_mahalanobis_to_the_nearest_mean():
    rng = np.random.default_rng(84)
    one, features_BF = gaussians(rng, 4), rng.normal(size=(6, 4))
    inverse_FF = one.whiten_FF @ one.whiten_FF.T
    means_KF = one.means_KF @ np.linalg.inv(one.whiten_FF)
    expected = [min(mahalanobis(row_F, mean_F, inverse_FF) ** 2 for mean_F in means_KF) for row_F in features_BF]
    assert np.allclose(one.distance(features_BF), expected)
    assert np.allclose(one.score(features_BF), (np.array(expected) - 2) / 5)


def test_features_are_pixel_statistics_and_layer_outputs(network, images_B):
    seen: dict[str, torch.Tensor] = {}
    for name in ("hidden1", "relu1", "relu2"):
        network.get_submodule(name).register_forward_hook(lambda *args, name=name: seen.update({name: args[-1]}))
    with torch.no_grad():
        network.eval()(torch.from_numpy(images_B))
    views = extract_features(LiveChain(network), images_B)
    assert np.allclose(views["first layer"], seen["hidden1"], atol=1e-6)
    assert np.allclose(views["activations"], torch.cat([seen["relu1"], seen["relu2"]], dim=1).sqrt(), atol=1e-4)
    for row, (pixels,) in zip(views["image"], images_B, strict=True):
        down, right = np.abs(pixels[1:] - pixels[:-1]).mean(), np.abs(pixels[:, 1:] - pixels[:, :-1]).mean()
        plain = [pixels.mean(), pixels.std(), pixels.max(), (pixels == 0).mean()]
        assert row == pytest.approx([*plain, np.log(down + 0.01), np.log(right + 0.01)], rel=1e-4, abs=0.03)


def test_the_farthest_view_decides(network, novelty, images_B):
    chain = LiveChain(network)
    views = extract_features(chain, images_B)
    each = np.array([novelty.gaussians[name].score(views[name]) for name in FEATURES])
    assert np.allclose(novelty.score(chain, images_B), each.max(axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 17, 255, 256, 257, 300])
def test_a_score_does_not_depend_on_its_neighbours(network, novelty, images_B, count):
    chain = LiveChain(network)
    repeated_B = np.concatenate([images_B] * (600 // len(images_B) + 1))[:600]
    whole_B = novelty.score(chain, repeated_B)
    order_B = np.random.default_rng(0).permutation(600)[:count]
    assert np.array_equal(novelty.score(chain, repeated_B[order_B]), whole_B[order_B])
    alone = [highest(novelty.views_alone(chain, repeated_B[b : b + 1])) for b in order_B[:20]]
    assert np.allclose(alone, whole_B[order_B[:20]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 300])
def test_a_real_score_does_not_depend_on_its_neighbours(fashion, count):
    """Of the model that is served, whose products are those that BLAS cuts into blocks."""
    artifact = load_artifact()
    chain, rng = LiveChain(artifact.network), np.random.default_rng(1)
    inputs_B = as_inputs(fashion.test.images_B[:1000]).numpy()
    inputs_B[800:] = rng.random((200, 1, 28, 28), np.float32)
    whole_B = artifact.novelty.score(chain, inputs_B)
    for _ in range(5):
        order_B = rng.permutation(1000)[:count]
        assert np.array_equal(artifact.novelty.score(chain, inputs_B[order_B]), whole_B[order_B])


@pytest.mark.parametrize("name", FEATURES)
def test_any_view_may_be_the_farthest(network, novelty, images_B, name):
    """That whose scale is a thousandth decides of all images; one of the others would be far lower."""
    near = replace(novelty.gaussians[name], median=0.0, percentile_99=1e-3)
    one = Novelty(dict(novelty.gaussians) | {name: near}, novelty.thresholds)
    chain = LiveChain(network)
    expected_B = near.score(extract_features(chain, images_B)[name])
    assert expected_B.min() > 2 * novelty.score(chain, images_B).max()
    assert np.allclose(one.score(chain, images_B), expected_B, rtol=1e-4)


def test_an_image_alone_scores_as_among_others(network, novelty, images_B):
    """Alone, only the features that aren't 0 are multiplied, if they are few: as of the black image."""
    images_B[-1] = 0
    chain = LiveChain(network)
    together_B = novelty.score(chain, images_B)
    for b, score in enumerate(together_B):
        alone = novelty.views_alone(chain, images_B[b : b + 1])
        assert tuple(alone) == novelty.view_names
        assert highest(alone) == pytest.approx(score, rel=1e-5, abs=1e-5)
    few = np.where(np.arange(14) % 3 == 0, np.arange(14.0), 0)
    one = novelty.gaussians["activations"]
    assert one.distance(few[None], _multiply_sparse_row) == pytest.approx(one.distance(np.stack([few, few + 1]))[:1])


def test_no_images_have_no_scores(network, novelty, images_B):
    assert novelty.score(LiveChain(network), images_B[:0]).shape == (0,)


def test_an_artifact_keeps_it(network, novelty, images_B, tmp_path):
    save_artifact(tmp_path, network, PLAIN, {"classes": ["a", "b", "c"]}, novelty=novelty)
    found = load_artifact(tmp_path).novelty
    assert found.thresholds == novelty.thresholds
    chain = LiveChain(network)
    assert np.array_equal(found.score(chain, images_B), novelty.score(chain, images_B))


def test_a_changed_file_is_refused(network, novelty, tmp_path):
    save_artifact(tmp_path, network, PLAIN, {"classes": ["a", "b", "c"]}, novelty=novelty)
    path = tmp_path / "novelty.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match=r"novelty\.safetensors: expected sha256"):
        load_artifact(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"novelty\.safetensors: expected a readable file"):
        load_artifact(tmp_path)


@pytest.mark.parametrize(("name", "size"), [("first layer", 7), ("activations", 8)])
def test_one_of_another_network_is_refused(network, novelty, tmp_path, name, size):
    other = Novelty(dict(novelty.gaussians) | {name: gaussians(np.random.default_rng(85), size)}, novelty.thresholds)
    save_artifact(tmp_path, network, PLAIN, {"classes": ["a", "b", "c"]}, novelty=other)
    with pytest.raises(ArtifactError, match=f"{name}: expected {SIZES[name]} features, got {size}"):
        load_artifact(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts[0].pop("scales"), "bad 'scales'"),
        (lambda parts: parts[0]["thresholds"].pop("0.01"), "bad '0.01'"),
        (lambda parts: parts[0]["scales"].update(image=[1]), "not enough values"),
        (lambda parts: parts[1].pop("image means"), "bad 'image means'"),
        (lambda parts: parts[1].update({"image means": np.zeros((3, 5))}), "don't fit"),
    ],
)
def test_from_parts_refuses_an_invalid_novelty_model(novelty, change, message):
    parts = novelty.to_json(), novelty.arrays()
    change(parts)
    with pytest.raises(ValueError, match=message):
        Novelty.from_parts(*parts)


@pytest.fixture(scope="module")
def bars() -> nn.Sequential:
    torch.manual_seed(70)
    layers = [nn.Linear(784, 20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 12), nn.ReLU(), nn.Dropout(0.4)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(12, 4)).requires_grad_(requires_grad=False)


def test_unusual_images_score_high_and_false_alarms_keep_their_rate(bars):
    novelty = fit_novelty(bars, images(2000, 72), images(2000, 73))
    chain = LiveChain(bars)
    ordinary_B = novelty.score(chain, images(4000, 74).inputs_B.numpy())
    for rate, threshold in novelty.thresholds.items():
        assert (ordinary_B > threshold).mean() == pytest.approx(rate, abs=4 * (2 * rate / 2000) ** 0.5)
    rng = np.random.default_rng(75)
    strange = {
        "blank": np.zeros((5, 1, 28, 28), np.float32),
        "grey": np.full((5, 1, 28, 28), 0.4, np.float32),
        "noise": rng.random((5, 1, 28, 28), np.float32),
        "rotated": np.rot90(images(20, 76).inputs_B.numpy(), axes=(2, 3)),
    }
    for name, images_B in strange.items():
        assert (novelty.score(chain, images_B) > novelty.thresholds[0.01]).all(), name


def test_only_the_image_view_is_fitted_to_augmented_copies(bars, monkeypatch):
    train, others = images(2000, 72), images(2000, 73)
    copies_B = augmented_copies(images(2000, 74).inputs_B.numpy(), np.random.default_rng(1))
    learnt = fit_novelty(bars, train, others)
    monkeypatch.setattr(training.novelty, "augmented_copies", lambda images_B, _: images_B)
    unlearnt = fit_novelty(bars, train, others)
    views = extract_features(LiveChain(bars), copies_B)

    def score(novelty: Novelty, name: str) -> float:
        return float(np.median(novelty.gaussians[name].score(views[name])))

    assert score(learnt, "image") < 1 < score(unlearnt, "image")
    for name in ("first layer", "activations"):
        assert score(learnt, name) == score(unlearnt, name)


@pytest.mark.parametrize("resampling", [Image.Resampling.BICUBIC, Image.Resampling.NEAREST])
def test_resampled_clothes_are_not_novel(fashion, resampling):
    """As photographs come: larger, dark on white, with a margin."""
    artifact = load_artifact()
    pictures = []
    for pixels in fashion.test.images_B[:300].numpy():
        large = 255 - np.asarray(Image.fromarray(pixels).resize((280, 280), resampling))
        pictures.append(prepare(Decoded(np.pad(large, 40, constant_values=255), "PNG")).pixels)
    inputs_B = as_inputs(torch.from_numpy(np.stack(pictures))).numpy()
    novel_B = artifact.novelty.score(LiveChain(artifact.network), inputs_B) > artifact.novelty.thresholds[0.01]
    assert novel_B.mean() <= 0.04


def test_augmented_copies_have_the_documented_ranges():
    plain_B = np.zeros((1500, 1, 28, 28), np.float32)
    plain_B[:, :, 6:22, 6:22] = 1
    copies_B = augmented_copies(plain_B, np.random.default_rng(5))
    again_B = augmented_copies(plain_B, np.random.default_rng(5))
    assert np.array_equal(copies_B, again_B)
    kinds = np.unique(copies_B, axis=0)
    assert len(kinds) == 3  # five hundred alike
    for copy in kinds[:, 0]:
        assert 0.75 < copy.max() <= 1
        assert (0.95**2 * 0.8 - 0.05) * 256 < copy.sum() <= 256 + 1e-3
        assert copy[:, :14].sum() == pytest.approx(copy[:, 14:].sum(), rel=1e-5)  # about the middle
        assert copy[:14].sum() == pytest.approx(copy[14:].sum(), rel=1e-5)
