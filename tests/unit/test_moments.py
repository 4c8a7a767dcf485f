"""Moments against all masks where there are few, and against very many where there are more."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model import (
    MLPConfig,
    MomentPropagation,
    Moments,
    MonteCarloDropout,
    Uncertainty,
    build_mlp,
    load_artifact,
    summarize,
)
from model.moments import _cornish_fisher_matrix, _LogitCumulants, _propagate, _third_cumulants

Cumulants = tuple[np.ndarray, np.ndarray, np.ndarray]


def chain(probabilities: tuple[float, ...], *, seed: int = 1, units: int = 24, classes: int = 5) -> nn.Sequential:
    """A linear layer, ReLU and dropout for each probability, and logits of about unit size."""
    torch.manual_seed(seed)
    layers, width = [nn.Flatten()], 36
    for p in probabilities:
        linear = nn.Linear(width, units)
        nn.init.kaiming_normal_(linear.weight)
        nn.init.normal_(linear.bias, std=0.3)
        layers += [linear, nn.ReLU(), nn.Dropout(p)]
        width = units
    layers.append(nn.Linear(width, classes))
    nn.init.normal_(layers[-1].weight, std=width**-0.5)
    return nn.Sequential(*layers).requires_grad_(requires_grad=False)


def propagated(network: nn.Sequential, image: Tensor) -> Cumulants:
    logits = _propagate(image.flatten().numpy(), *MomentPropagation(network)._chain.stages())
    return (
        logits.mean_C,
        logits.covariance_CC + logits.curvature_covariance_CC,
        _third_cumulants(logits.pairs_CT, logits.singles_CT),
    )


def enumerated(network: nn.Sequential, image: Tensor) -> Cumulants:
    """Cumulants of the logits over all masks of all dropout layers, each with its probability."""
    weights_M, features_MU = torch.ones(1, dtype=image.dtype), image.flatten(1)
    for layer in network:
        if isinstance(layer, nn.Dropout):
            units = features_MU.shape[1]
            keep_KU = torch.tensor(list(itertools.product([0, 1], repeat=units)), dtype=image.dtype)
            weights_K = (keep_KU * (1 - layer.p) + (1 - keep_KU) * layer.p).prod(dim=1)
            scaled_KU = keep_KU / (1 - layer.p) if layer.p < 1 else 0 * keep_KU
            weights_M = torch.outer(weights_M, weights_K).flatten()
            features_MU = (features_MU[:, None] * scaled_KU).flatten(0, 1)
            features_MU, weights_M = features_MU[weights_M > 0], weights_M[weights_M > 0]
        else:
            features_MU = layer(features_MU)
    logits_MC, weights_M = features_MU.detach().numpy(), weights_M.numpy()
    mean_C = weights_M @ logits_MC
    off_MC = logits_MC - mean_C
    weighted_MC = weights_M[:, None] * off_MC
    return mean_C, weighted_MC.T @ off_MC, np.einsum("ma,mb,mc->abc", weighted_MC, off_MC, off_MC)


LINEAR = {
    "one layer": [nn.Dropout(0.3), nn.Linear(6, 4)],
    "one layer of p 0.7": [nn.Dropout(0.7), nn.Linear(6, 4)],
    "no bias": [nn.Dropout(0.5), nn.Linear(6, 4, bias=False)],
    "ReLU behind dropout": [nn.Dropout(0.2), nn.ReLU(), nn.Linear(6, 4)],
    "ReLU before dropout": [nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4)],
    "two dropouts in a row": [nn.Dropout(0.3), nn.Dropout(0.5), nn.Linear(6, 4)],
    "two linear layers": [nn.Dropout(0.1), nn.Linear(6, 5), nn.Linear(5, 4, bias=False)],
    "dropout of p 0": [nn.Dropout(0), nn.Dropout(0.3), nn.Linear(6, 5), nn.Dropout(0), nn.Linear(5, 4)],
    "all dropped": [nn.Dropout(1.0), nn.Linear(6, 4)],
    "all dropped in the end": [nn.Dropout(0.3), nn.Linear(6, 5), nn.ReLU(), nn.Dropout(1.0), nn.Linear(5, 4)],
    "all dropped at first": [nn.Dropout(1.0), nn.Linear(6, 4), nn.ReLU(), nn.Dropout(0.4), nn.Linear(4, 4)],
    "known before dropout": [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.4), nn.Linear(6, 4)],
}
IMAGES = {"mixed": [0.7, -1.2, 0, 2, 0.4, -0.3], "zero": [0.0] * 6}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("layers", LINEAR.values(), ids=LINEAR)
def test_one_noisy_layer_has_the_exact_cumulants(layers, image):
    network, image = nn.Sequential(nn.Flatten(), *layers).double(), torch.tensor([image], dtype=torch.float64)
    for found, expected in zip(propagated(network, image), enumerated(network, image), strict=True):
        assert np.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("between", [[], [nn.ReLU()]], ids=["no ReLU", "ReLU of what is never negative"])
@pytest.mark.parametrize(("p", "q"), [(0.3, 0.5), (0.7, 0.1), (0.5, 1.0)])
@pytest.mark.parametrize("units", [5, 1])
def test_two_noisy_layers_have_the_exact_mean_and_covariance(between, p, q, units):
    """And their third cumulants, if it is one unit; those of several are followed to first order."""
    torch.manual_seed(31)
    layers = [nn.Dropout(p), nn.Linear(6, units), *between, nn.Dropout(q), nn.Linear(units, 4)]
    network, image = nn.Sequential(*layers).double(), torch.tensor([IMAGES["mixed"]], dtype=torch.float64)
    nn.init.constant_(network[1].bias, 30)
    (mean_C, covariance_CC, third_CCC), expected = propagated(network, image), enumerated(network, image)
    assert np.allclose(mean_C, expected[0], rtol=1e-9, atol=1e-9)
    assert np.allclose(covariance_CC, expected[1], rtol=1e-6, atol=1e-9)
    assert units > 1 or np.allclose(third_CCC, expected[2], rtol=1e-6, atol=1e-8)


def test_two_consecutive_dropouts_equal_one(images_B):
    flatten, linear, relu, _, *rest = chain((0.2, 0.5))
    twice = nn.Sequential(flatten, linear, nn.Dropout(0.2), relu, nn.Dropout(0.5), *rest)
    once = nn.Sequential(flatten, linear, relu, nn.Dropout(1 - 0.8 * 0.5), *rest)
    for name, value in vars(MomentPropagation(twice).predict(images_B)).items():
        assert torch.allclose(value, getattr(MomentPropagation(once).predict(images_B), name), atol=1e-6), name


@pytest.fixture
def images_B() -> Tensor:
    return torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(32))


@pytest.mark.parametrize(
    ("probabilities", "mean", "information"),
    [
        ((0.1,), 0.001, 0.3), ((0.7,), 0.008, 0.12), ((0.2, 0.5), 0.006, 0.12), ((0.7, 0.1), 0.02, 0.2),
        ((0.1, 0.3, 0.5), 0.015, 0.12),
    ],
)  # fmt: skip
def test_small_networks_match_many_masks(images_B, probabilities, mean, information):
    """Bounds, about twice what was seen: of a mean, and of the mutual information and deviations as parts of them.

    The worst are narrow layers of large p: 24 units, of which ten are active, are far from normal.
    """
    network = chain(probabilities)
    reference = summarize(MonteCarloDropout(network).sample(images_B, samples=40_000, seed=2))
    found = MomentPropagation(network).predict(images_B)
    deviation = reference.variance.sqrt()
    assert (found.mean - reference.mean).abs().max() <= mean
    assert (found.variance.sqrt() - deviation).abs().max() <= 0.2 * deviation.max()
    assert (found.mutual_information / reference.mutual_information - 1).abs().max() <= information
    assert (found.predictive_entropy - reference.predictive_entropy).abs().max() <= 4 * mean


@pytest.fixture(scope="module")
def embedded(fashion) -> tuple[nn.Sequential, Tensor, Uncertainty, Moments]:
    """The embedded network, 30 test images, what 20,000 masks say of them, and their moments."""
    network, images_B = load_artifact().network, fashion.test.images_B[:300:10].view(-1, 1, 28, 28) / 255
    reference = summarize(MonteCarloDropout(network).sample(images_B, samples=20_000, seed=33))
    return network, images_B, reference, MomentPropagation(network).predict(images_B)


def rms(off: Tensor) -> float:
    return off.square().mean().sqrt().item()


def test_embedded_network_is_more_precise_than_many_masks(embedded):
    network, images_B, reference, found = embedded
    mc, off = MonteCarloDropout(network), {}
    for samples in (200, 1000):
        runs = [
            summarize(mc.sample(images_B, samples=samples, seed=s, masks="independent"), masks="independent")
            for s in range(10)
        ]
        off[samples] = (
            rms(torch.stack([run.mean - reference.mean for run in runs])),
            rms(torch.stack([run.mutual_information - reference.mutual_information for run in runs])),
        )
    assert rms(found.mean - reference.mean) < off[1000][0]
    assert rms(found.mutual_information - reference.mutual_information) < off[200][1]


def assert_moments_of_distributions(found: Moments) -> None:
    classes = found.mean.shape[1]
    for name, value in vars(found).items():
        assert value.dtype == torch.float64, name
        assert value.isfinite().all(), name
    assert (found.mean >= 0).all()
    assert (found.mean.sum(dim=1) - 1).abs().max() <= 1e-6
    assert torch.equal(found.covariance, found.covariance.mT)
    assert torch.equal(found.variance, torch.stack([covariance.diagonal() for covariance in found.covariance]))
    assert (found.variance >= 0).all()
    assert (found.variance <= found.mean * (1 - found.mean) + 1e-6).all()
    assert torch.linalg.eigvalsh(found.covariance).min() >= -1e-12
    assert found.covariance.sum(dim=2).abs().max() <= 1e-6
    assert (found.predictive_entropy <= math.log(classes) + 1e-6).all()
    assert (found.expected_entropy >= -1e-6).all()
    assert (found.mutual_information >= 0).all()
    assert torch.allclose(found.mutual_information, found.predictive_entropy - found.expected_entropy, atol=1e-6)


def test_of_real_images_they_are_moments_of_distributions(embedded, fashion):
    network, *_, found = embedded
    assert_moments_of_distributions(found)
    images_B = fashion.test.images_B[:400].view(-1, 1, 28, 28) / 255
    assert_moments_of_distributions(MomentPropagation(network).predict(images_B))


@pytest.mark.parametrize("classes", [1, 2, 100])
@pytest.mark.parametrize("size", [0, 1, 1e4])
def test_results_are_valid_moments_for_any_size(images_B, classes, size):
    found = MomentPropagation(chain((0.7, 0.4), classes=classes)).predict(size * images_B)
    assert found.mean.shape == (5, classes)
    assert_moments_of_distributions(found)


@pytest.mark.parametrize(("probabilities", "seed"), [((0.9, 0.5), 3), ((0.8, 0.8, 0.8), 5)])
def test_too_much_curvature_for_its_correction_leaves_moments_of_distributions(images_B, probabilities, seed):
    network = chain(probabilities, seed=seed, units=3)
    variances = [np.linalg.eigvalsh(propagated(network, image)[1]) for image in images_B.flatten(1)]
    assert min(least / most for least, *_, most in variances) < -0.03  # so that it is no covariance
    assert_moments_of_distributions(MomentPropagation(network).predict(images_B))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_images_without_finite_logits_are_refused(images_B, value):
    images_B[3, 0, 2, 2] = value
    with pytest.raises(ValueError, match="must be finite"):
        MomentPropagation(chain((0.2, 0.5))).predict(images_B)


def test_dropping_everything_leaves_the_last_bias(images_B):
    network = chain((0.3, 1.0))
    found = MomentPropagation(network).predict(images_B)
    assert torch.allclose(found.mean, network[-1].bias.double().softmax(dim=0).expand(5, -1), atol=1e-6)
    assert found.variance.max() <= 1e-12
    assert found.mutual_information.max() <= 1e-6


def test_p_zero_dropout_changes_nothing_at_any_position(images_B):
    layers = list(chain((0.2, 0.5)))
    expected = MomentPropagation(nn.Sequential(*layers)).predict(images_B)
    for position in range(len(layers)):
        network = nn.Sequential(*layers[:position], nn.Sequential(nn.Dropout(0)), *layers[position:])
        for name, value in vars(MomentPropagation(network).predict(images_B)).items():
            assert torch.allclose(value, getattr(expected, name), atol=1e-6), (position, name)


def test_in_double_precision_they_are_the_same(images_B):
    network = chain((0.2, 0.5))
    single = MomentPropagation(network).predict(images_B)
    double = MomentPropagation(network.double()).predict(images_B.double().numpy())
    for name, value in vars(single).items():
        assert torch.allclose(value, getattr(double, name), atol=1e-5), name


def test_image_is_independent_of_batch_random_state_and_mode(images_B):
    network = chain((0.2, 0.5))
    propagation = MomentPropagation(network)
    together = propagation.predict(images_B)
    torch.manual_seed(34)
    again = MomentPropagation(network.eval())
    for b in range(len(images_B)):
        for moments in (propagation.predict(images_B[b : b + 1]), again.predict(images_B[b : b + 1])):
            for name, value in vars(moments).items():
                assert torch.equal(value[0], getattr(together, name)[b]), name
    assert propagation.predict(images_B[:0]).covariance.shape == (0, 5, 5)


def test_network_images_and_global_random_state_are_left_alone(images_B):
    network = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), *chain((0.2, 0.5))[1:]).requires_grad_()
    images_B -= 0.5
    weights, given = [parameter.clone() for parameter in network.parameters()], images_B.clone()
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 - it is asked about
    found = MomentPropagation(network).predict(images_B)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert str(np.random.get_state()) == str(numpy_before)  # noqa: NPY002 - likewise
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), weights, strict=True))
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(images_B, given)
    assert not found.mean.requires_grad


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *args: 2 * args[-1])
    return module


class Skip(nn.Sequential):
    def forward(self, features: Tensor) -> Tensor:
        return features + super().forward(features)


DROPOUT, END = nn.Dropout(0.5), nn.Linear(36, 5)


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        *[
            (nn.Sequential(nn.Flatten(), nn.Sequential(layer), DROPOUT, END), TypeError, rf"layer 1\.0: .*{name}$")
            for name, layer in {
                "Tanh": nn.Tanh(),
                "Conv2d": nn.Conv2d(1, 1, 3),
                "BatchNorm1d": nn.BatchNorm1d(36),
                "Dropout1d": nn.Dropout1d(0.5),
                "hooks, not Linear": hooked(nn.Linear(36, 36)),
                "Skip": Skip(nn.Linear(36, 36)),
            }.items()
        ],
        (nn.Sequential(nn.Flatten(), nn.Dropout(0), END), ValueError, "no active dropout"),
        (nn.Sequential(nn.Flatten(), DROPOUT, END, nn.ReLU()), TypeError, r"from an nn\.Linear, not ReLU"),
        (nn.Sequential(nn.Flatten(), END, DROPOUT), TypeError, r"from an nn\.Linear, not Dropout"),
        (nn.Sequential(nn.Flatten(), DROPOUT, nn.Linear(36, 101)), ValueError, "at most 100 classes, got 101"),
        (Skip(nn.Flatten(), DROPOUT, nn.Linear(36, 36)), TypeError, "Skip"),
        (hooked(nn.Sequential(nn.Flatten(), DROPOUT, END)), TypeError, "hooks"),
    ],
)
def test_networks_whose_moments_arent_known_are_refused(network, error, message):
    with pytest.raises(error, match=message):
        MomentPropagation(network)


def test_invalid_images_are_refused(images_B):
    propagation = MomentPropagation(nn.Sequential(nn.Flatten(), DROPOUT, END))
    with pytest.raises(ValueError, match="25 units don't match a linear layer of 36"):
        propagation.predict(images_B[..., :5, :5])
    with pytest.raises(TypeError, match=r"must be floating-point, got torch\.uint8"):
        propagation.predict((images_B * 255).to(torch.uint8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_same_moments():
    network, images_B = build_mlp(MLPConfig(image=(1, 4, 4), hidden=(20, 10), classes=5)), torch.rand(3, 1, 4, 4)
    expected = MomentPropagation(network).predict(images_B)
    found = MomentPropagation(network.cuda()).predict(images_B.cuda())
    assert torch.allclose(found.mean, expected.mean, atol=1e-5)
    assert torch.allclose(found.mutual_information, expected.mutual_information, atol=1e-4)


@pytest.mark.parametrize("size", [0.005, 0.01, 0.02])
def test_quadratic_term_leaves_the_covariance_as_it_is(size):
    """A quadratic function L z + Q (z z' - 1) of standard normal variables has the covariance L L' + 2 Q Q'."""
    rng = np.random.default_rng(12)
    root_CC = rng.normal(size=(4, 4)) + 3 * np.eye(4)
    pairs_CT, singles_CT = (rng.normal(size=(4, 6)) for _ in range(2))
    logits = _LogitCumulants(
        rng.normal(size=4), root_CC @ root_CC.T, np.zeros((4, 4)), root_CC @ pairs_CT, size * root_CC @ singles_CT
    )
    matrix = _cornish_fisher_matrix(logits).astype(np.float64)
    linear_CC, quadratic_CCC = matrix[:, 1:5], matrix[:, 5:].reshape(4, 4, 4)
    quadratic_CC = 2 * np.einsum("aij,bij->ab", quadratic_CCC, quadratic_CCC)
    left_CC = linear_CC @ linear_CC.T + quadratic_CC - logits.covariance_CC
    share = np.abs(quadratic_CC).max() / np.abs(logits.covariance_CC).max()
    assert 1e-4 < share < 0.05
    assert np.abs(left_CC).max() < (share**2 + 3e-6) * np.abs(logits.covariance_CC).max()


def test_third_cumulants_are_symmetric_and_match_many_masks():
    """Of differences to the first logit, which the probabilities tell; 100,000 masks, a third of their norm off."""
    torch.manual_seed(11)
    network = build_mlp(MLPConfig(image=(1, 4, 4), hidden=(60, 40), classes=4)).requires_grad_(requires_grad=False)
    image = 3 * torch.rand(1, 1, 4, 4)
    *_, third_CCC = propagated(network, image)
    for axes in itertools.permutations(range(3)):
        assert np.allclose(third_CCC, third_CCC.transpose(axes), rtol=1e-4, atol=1e-4 * np.abs(third_CCC).max())
    logs_SC = MonteCarloDropout(network).sample(image, samples=100_000, seed=1)[:, 0].double().log().numpy()
    difference_DC = np.eye(4)[1:] - np.eye(4)[0]
    noise_SD = (logs_SC - logs_SC.mean(axis=0)) @ difference_DC.T
    sampled_DDD = np.einsum("sa,sb,sc->abc", noise_SD, noise_SD, noise_SD) / len(noise_SD)
    found_DDD = np.einsum("ijk,ai,bj,ck->abc", third_CCC, *[difference_DC] * 3)
    assert np.linalg.norm(found_DDD - sampled_DDD) <= np.linalg.norm(sampled_DDD) / 3


def test_a_hook_of_later_is_refused(images_B):
    network = chain((0.2, 0.5))
    propagation = MomentPropagation(network)
    hooked(network[1])
    with pytest.raises(TypeError, match="hooks"):
        propagation.predict(images_B)
