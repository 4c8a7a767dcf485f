"""The fast path against the obvious loops: exactly with explicit masks, in distribution with train-mode passes."""

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController, threadpool_limits
from torch import Tensor, nn

from model import MLPConfig, MomentPropagation, MonteCarloDropout, Uncertainty, build_mlp, keep_masks, summarize
from model.chain import Stage, run

DESIGNS = ["stratified", "independent"]
CHANNELWISE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def loop_of_passes(network: nn.Sequential, images_B: Tensor, passes: int) -> Tensor:
    """What most people write: the whole batch through the network in train mode, again and again."""
    was_training = network.training
    network.train()
    with torch.no_grad():
        probs_SBC = torch.stack([network(images_B).softmax(dim=-1) for _ in range(passes)])
    network.train(was_training)
    return probs_SBC


def loop_of_masks(
    layers: list[nn.Module], images_B: Tensor, samples: int, seed: int, masks: str = "stratified"
) -> Tensor:
    """One pass of the whole batch for each mask, every layer in full."""
    passes = []
    for sample in range(samples):
        features, dropouts = images_B, 0
        for layer in layers:
            if isinstance(layer, (nn.Dropout, *CHANNELWISE)) and layer.p > 0:
                shape = features.shape[1:]
                shape = (shape[0], *[1] * (len(shape) - 1)) if isinstance(layer, CHANNELWISE) else shape
                key = {"seed": seed, "layer": dropouts, "first": sample, "masks": masks}
                keep = keep_masks(shape, layer.p, samples=1, **key)[0]
                features = features * torch.tensor(keep) / (1 - layer.p) if layer.p < 1 else torch.zeros_like(features)
                dropouts += 1
            elif not isinstance(layer, nn.Dropout):
                features = layer(features)
        passes.append(features.softmax(dim=-1))
    return torch.stack(passes)


def mlp() -> nn.Sequential:
    return build_mlp(MLPConfig(image=(1, 6, 6), hidden=(32, 24), dropout=(0.2, 0.5), classes=5))


def cnn() -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout2d(0.3),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(24, 5),
    )
    network(torch.randn(64, 1, 6, 6))  # gives the batch norm its statistics
    return network


def equal_layers() -> nn.Sequential:
    """Dropout layers of one shape and probability, which differ in nothing but their masks."""
    blocks = [layer for _ in range(3) for layer in (nn.Linear(36, 36), nn.ReLU(), nn.Dropout(0.5))]
    return nn.Sequential(nn.Flatten(), *blocks, nn.Linear(36, 5))


def nested() -> nn.Sequential:
    inner = nn.Sequential(nn.Linear(36, 16), nn.Tanh(), nn.Sequential(nn.Dropout(0.25)))
    return nn.Sequential(nn.Flatten(), nn.Dropout(0), inner, nn.Linear(16, 5))


def first_layer() -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.1), nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.2), nn.Linear(8, 5))


def repeated() -> nn.Sequential:
    square, drop, relu = nn.Linear(36, 36), nn.Dropout(0.3), nn.ReLU()
    return nn.Sequential(nn.Flatten(), square, relu, drop, square, relu, drop, square, relu, nn.Linear(36, 5))


def sequence() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 8, 5), nn.Dropout1d(0.5), nn.Flatten(), nn.Linear(256, 5))


NETWORKS = [mlp, cnn, equal_layers, nested, repeated, sequence]


@pytest.fixture(params=NETWORKS)
def network(request) -> nn.Sequential:
    torch.manual_seed(21)
    return request.param().eval().requires_grad_(requires_grad=False)


@pytest.fixture
def images_B() -> Tensor:
    return torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(22))


def flat(network: nn.Sequential) -> list[nn.Module]:
    return [leaf for layer in network for leaf in (flat(layer) if isinstance(layer, nn.Sequential) else [layer])]


@pytest.mark.parametrize("samples", [2, 99, 100, 101, 205])
@pytest.mark.parametrize("masks", DESIGNS)
def test_with_explicit_masks_it_equals_the_loop(network, images_B, samples, masks):
    mc, other = MonteCarloDropout(network), DESIGNS[masks == DESIGNS[0]]
    expected = loop_of_masks(flat(network), images_B, samples, 6, masks)
    mc.sample(images_B, samples=samples, seed=6, masks=other)  # whose masks, kept for the next call, must not be taken
    assert torch.allclose(mc.sample(images_B, samples=samples, seed=6, masks=masks), expected, atol=1e-6)


def test_in_double_precision_it_equals_the_loop_to_twelve_digits(network, images_B):
    network, images_B = network.double(), images_B.double()
    found = MonteCarloDropout(network).sample(images_B, samples=40, seed=7)
    assert found.dtype == torch.float64
    assert torch.allclose(found, loop_of_masks(flat(network), images_B, 40, seed=7), rtol=0, atol=1e-12)


CHAINS = {
    "elementwise layers": [
        *[nn.Dropout(0.3), nn.Linear(36, 9), nn.Tanh(), nn.Linear(9, 9), nn.Sigmoid(), nn.Dropout(0.5)],
        *[nn.Linear(9, 9), nn.GELU(), nn.LeakyReLU(inplace=True), nn.ELU(), nn.SiLU(), nn.Softplus(), nn.Linear(9, 5)],
    ],
    "a bias from the start": [nn.ReLU(), nn.Linear(36, 9), nn.ReLU(), nn.Dropout(0.3), nn.Linear(9, 5)],
    "no bias": [nn.Dropout(0.3), nn.Linear(36, 9, bias=False), nn.ReLU(), nn.Dropout(0.4), nn.Linear(9, 5, bias=False)],
    "dropout before ReLU": [nn.Dropout(0.3), nn.ReLU(), nn.Linear(36, 9), nn.Dropout(0.4), nn.ReLU(), nn.Linear(9, 5)],
    "one linear layer": [nn.Dropout(0.3), nn.Linear(36, 5)],
    "dropout at the end": [nn.Dropout(0.3), nn.Linear(36, 5), nn.Dropout(0.5)],
    "nothing but dropout at the end": [nn.Linear(36, 5), nn.Dropout(0.5)],
    "dropout twice": [nn.Dropout(0.3), nn.Dropout(0.5), nn.Linear(36, 5)],
    "dropout of p 0 in between": [nn.Dropout(0.3), nn.Dropout(0), nn.Linear(36, 9), nn.Dropout(0), nn.Linear(9, 5)],
    "all dropped": [nn.Dropout(0.3), nn.Linear(36, 9), nn.Dropout(1.0), nn.Linear(9, 5)],
    "units that see each other": [nn.Dropout(0.3), nn.Linear(36, 9), nn.LayerNorm(9), nn.Softmax(-1), nn.Linear(9, 5)],
    "a norm of spectra": [nn.Dropout(0.3), nn.utils.parametrizations.spectral_norm(nn.Linear(36, 9)), nn.Linear(9, 5)],
    "a shape in between": [nn.Dropout(0.3), nn.Linear(36, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8, 5)],
}


@pytest.mark.parametrize("layers", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("masks", DESIGNS)
def test_any_chain_of_units_equals_the_loop(layers, masks, images_B):
    network = nn.Sequential(nn.Flatten(), *layers).eval().requires_grad_(requires_grad=False)
    images_B, before = images_B - 0.4, images_B.clone() - 0.4
    for samples in (10, 120):
        found = MonteCarloDropout(network).sample(images_B, samples=samples, seed=6, masks=masks)
        with torch.no_grad():
            expected = loop_of_masks(flat(network), images_B, samples, 6, masks)
        assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(images_B, before)


def test_linear_layers_of_rows_equal_the_loop(images_B):
    """They work on the last of three axes, which a chain of units has not."""
    network = nn.Sequential(
        nn.Flatten(1, 2), nn.Dropout(0.3), nn.Linear(6, 4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)
    )
    with torch.no_grad():
        expected = loop_of_masks(flat(network), images_B, 20, seed=6)
    assert torch.allclose(MonteCarloDropout(network).sample(images_B, samples=20, seed=6), expected, atol=1e-6)


def test_stratified_means_are_unbiased_with_less_than_half_the_error(images_B):
    """300 means of 50 masks each, against 30,000 stratified masks; their mean lies within 5 standard errors."""
    torch.manual_seed(25)
    mc = MonteCarloDropout(mlp())
    means = {
        masks: torch.stack([mc.sample(images_B, samples=50, seed=s, masks=masks).double().mean(0) for s in range(300)])
        for masks in DESIGNS
    }
    truth_BC = mc.sample(images_B, samples=30_000, seed=1000).double().mean(dim=0)
    for means_RBC in means.values():
        assert ((means_RBC.mean(0) - truth_BC).abs() <= 5 * means_RBC.std(0) * (1 / 300 + 50 / 30_000) ** 0.5).all()
    errors = {masks: (means_RBC - truth_BC).square().mean() for masks, means_RBC in means.items()}
    assert 2 * errors["stratified"] < errors["independent"]


@pytest.mark.parametrize("masks", DESIGNS)
def test_unknown_design_is_refused_and_stratified_is_the_default(images_B, masks):
    mc = MonteCarloDropout(mlp())
    same = torch.equal(mc.sample(images_B, samples=20), mc.sample(images_B, samples=20, masks=masks))
    assert same == (masks == "stratified")
    for given in (images_B, images_B[:0]):
        with pytest.raises(ValueError, match="masks must be one of stratified, independent, got 'sobol'"):
            mc.sample(given, masks="sobol")


def largest_error_of_the_top(found: Uncertainty) -> float:
    return found.standard_error.gather(1, found.mean.argmax(dim=1, keepdim=True)).max().item()


@pytest.mark.parametrize("masks", DESIGNS)
@pytest.mark.parametrize("tolerance", [1e-320, 1e-4, 0.002, 0.01, 0.5])
def test_sampling_until_a_tolerance_is_sampling_that_many(network, images_B, masks, tolerance):
    mc = MonteCarloDropout(network)
    probs_SBC, found = mc.sample_until(images_B, tolerance=tolerance, max_samples=255, seed=3, masks=masks)
    used = len(probs_SBC)
    assert torch.equal(probs_SBC, mc.sample(images_B, samples=used, seed=3, masks=masks))
    for name, value in vars(summarize(probs_SBC, masks=masks)).items():
        assert torch.equal(value, getattr(found, name))
    assert used == 255 or (used % 10 == 0 and used < 255)
    assert used == 255 or largest_error_of_the_top(found) <= tolerance
    if used > 20:
        first = summarize(mc.sample(images_B, samples=20, seed=3, masks=masks), masks=masks)
        assert largest_error_of_the_top(first) > tolerance


def test_a_larger_tolerance_never_takes_more_samples(images_B):
    torch.manual_seed(26)
    mc = MonteCarloDropout(mlp())
    tolerances = [0.0004, 0.001, 0.002, 0.004, 0.008, 0.016]
    for seed in range(5):
        used = [len(mc.sample_until(images_B, tolerance=tolerance, seed=seed)[0]) for tolerance in tolerances]
        assert used == sorted(used, reverse=True)
        assert used[0] > used[-1] == 20


def test_sample_until_uses_the_fewest_masks_also_without_images(images_B):
    mc = MonteCarloDropout(mlp())
    for most in (2, 7, 20):
        assert len(mc.sample_until(images_B, tolerance=1e-9, max_samples=most)[0]) == most
    probs_SBC, found = mc.sample_until(images_B[:0])
    assert probs_SBC.shape == (20, 0, 5)
    assert found.mean.shape == (0, 5)


@pytest.mark.parametrize("tolerance", [0, -0.1, float("nan")])
def test_a_tolerance_that_cant_be_met_is_refused(images_B, tolerance):
    with pytest.raises(ValueError, match=f"the tolerance must be above 0, got {tolerance}"):
        MonteCarloDropout(mlp()).sample_until(images_B, tolerance=tolerance)
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        MonteCarloDropout(mlp()).sample_until(images_B, max_samples=1)


@pytest.mark.parametrize("make", [mlp, equal_layers, nested, first_layer, sequence])
@pytest.mark.parametrize("masks", DESIGNS)
def test_it_has_the_distribution_of_train_mode_passes(make, images_B, masks):
    """Means of n passes differ by less than 5 standard errors, and so do their variances.

    Those of a mean and of a variance: sqrt(m2 / n) and sqrt((m4 - m2^2) / n), of central moments m.
    """
    torch.manual_seed(23)
    network, n = make().eval(), 3000
    fast = MonteCarloDropout(network).sample(images_B, samples=n, seed=8, masks=masks).double()
    loop = loop_of_passes(network, images_B, n).double()
    assert not network.training
    squares = [(probs_SBC - probs_SBC.mean(0)) ** 2 for probs_SBC in (fast, loop)]
    for one, other in ((fast, loop), squares):
        assert ((one.mean(0) - other.mean(0)).abs() <= 5 * ((one.var(0) + other.var(0)) / n).sqrt()).all()
    information = [
        summarize(probs_SBC, masks=design).mutual_information
        for probs_SBC, design in ((fast, masks), (loop, "independent"))
    ]
    assert torch.allclose(*information, rtol=0.15)


def test_an_image_doesnt_depend_on_its_neighbours(network, images_B):
    mc = MonteCarloDropout(network)
    together, predicted = mc.sample(images_B, samples=50, seed=3), mc.predict(images_B)
    for b in range(len(images_B)):
        alone = images_B[b : b + 1]
        assert torch.equal(mc.sample(alone, samples=50, seed=3)[:, 0], together[:, b])
        assert torch.equal(mc.predict(alone)[0], predicted[b])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("samples", [2, 128, 129])
def test_units_that_are_zero_change_nothing(images_B, bias, samples):
    """Every second pixel of four images, and all of the last one."""
    network = nn.Sequential(
        nn.Flatten(), nn.Dropout(0.4), nn.Linear(36, 16, bias=bias), nn.Dropout(0.3), nn.Linear(16, 5)
    )
    images_B = images_B * (torch.arange(6) % 2)
    images_B[-1] = 0
    mc, expected = MonteCarloDropout(network), loop_of_masks(flat(network), images_B, samples, seed=6)
    found = mc.sample(images_B, samples=samples, seed=6)
    assert torch.allclose(found, expected, atol=1e-6)
    for b in range(len(images_B)):
        assert torch.equal(mc.sample(images_B[b : b + 1], samples=samples, seed=6)[:, 0], found[:, b])


@pytest.mark.parametrize("width", [50, 20])
def test_images_that_dont_fit_the_layers_are_refused(images_B, width):
    """Dark images of 36 pixels, whose bright ones would find their weights in either layer."""
    mc = MonteCarloDropout(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(width, 5)))
    images_B[:, :, 2:] = 0
    for call in (mc.predict, mc.sample):
        with pytest.raises((RuntimeError, ValueError), match="36"):
            call(images_B)


def test_changes_of_the_network_between_calls_take_effect(images_B):
    """Masks are kept for the next call: those of another probability, image size or precision must not be."""
    network = nn.Sequential(nn.Dropout(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 5))
    mc = MonteCarloDropout(network)

    def assert_right(images_B: Tensor, atol: float = 1e-6) -> None:
        expected = loop_of_masks(flat(network), images_B, 10, seed=6)
        assert torch.allclose(mc.sample(images_B, samples=10, seed=6), expected, rtol=0, atol=atol)

    assert_right(images_B)
    network[0].p = 0.7
    assert_right(images_B)
    assert_right(images_B[..., :4, :4])
    network[0].p = 0
    with pytest.raises(ValueError, match="no active dropout"):
        mc.sample(images_B)
    network[0].p = 0.2
    network.double()
    assert_right(images_B[..., :4, :4].double(), atol=1e-12)
    nn.init.uniform_(network[3].weight)
    assert_right(images_B[..., :4, :4].double(), atol=1e-12)


def test_all_images_see_the_same_masks(images_B):
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 5))
    twins_B = images_B[:1].expand(4, -1, -1, -1)
    probs_SBC = MonteCarloDropout(network).sample(twins_B, samples=30)
    assert torch.equal(probs_SBC, probs_SBC[:, :1].expand(-1, 4, -1))
    assert probs_SBC[:, 0].var(dim=0).min() > 0


def test_seed_determines_masks_and_fewer_masks_are_a_prefix(network, images_B):
    mc = MonteCarloDropout(network)
    few, many = (mc.sample(images_B, samples=n, seed=1) for n in (20, 200))
    assert torch.allclose(many[:20], few, atol=1e-6)
    assert torch.equal(MonteCarloDropout(network).sample(images_B, samples=20, seed=1), few)
    assert not torch.allclose(mc.sample(images_B, samples=20, seed=2), few, atol=1e-3)


def test_predict_is_the_eval_mode_forward(network, images_B):
    assert torch.allclose(MonteCarloDropout(network).predict(images_B), network(images_B).softmax(dim=-1), atol=1e-6)


def test_the_mode_is_neither_changed_nor_of_any_effect(images_B):
    torch.manual_seed(24)
    network = mlp()
    mc = MonteCarloDropout(network)
    network.eval()
    in_eval = mc.sample(images_B, samples=20), mc.predict(images_B)
    network.train()
    network.dropout1.eval()
    modes = [module.training for module in network.modules()]
    in_train = mc.sample(images_B, samples=20), mc.predict(images_B)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(one, other) for one, other in zip(in_eval, in_train, strict=True))


def test_no_global_random_state_is_touched(network, images_B):
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 - it is asked about
    mc = MonteCarloDropout(network)
    mc.sample(images_B, samples=20)
    mc.predict(images_B)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert str(np.random.get_state()) == str(numpy_before)  # noqa: NPY002 - likewise


def test_no_global_random_state_has_any_effect(network, images_B):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(MonteCarloDropout(network.train(mode=False)).sample(images_B, samples=20))
    assert torch.equal(*found)


def test_layers_before_the_first_dropout_run_once_per_image(images_B):
    network = mlp()
    calls = dict.fromkeys(("hidden1", "hidden2"), 0)
    for name in calls:
        network.get_submodule(name).register_forward_hook(
            lambda *_, name=name: calls.update({name: calls[name] + 1}),
        )
    MonteCarloDropout(network).sample(images_B, samples=300)
    assert calls == {"hidden1": len(images_B), "hidden2": 3 * len(images_B)}


def test_p_zero_dropout_does_not_end_the_prefix(images_B):
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0), nn.Linear(36, 8), nn.Dropout(0.5), nn.Linear(8, 5))
    calls = []
    network[2].register_forward_hook(lambda *_: calls.append(1))
    MonteCarloDropout(network).sample(images_B, samples=300)
    assert len(calls) == len(images_B)


@pytest.mark.parametrize("position", [0, 1, 2, 3, 4])
def test_p_zero_dropout_changes_no_mask_at_any_position(images_B, position):
    layers = [nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 8), nn.Dropout(0.3), nn.Linear(8, 5)]
    without = MonteCarloDropout(nn.Sequential(*layers)).sample(images_B, samples=10)
    layers.insert(position, nn.Dropout(0))
    assert torch.allclose(MonteCarloDropout(nn.Sequential(*layers)).sample(images_B, samples=10), without, atol=1e-6)


def test_arrays_are_accepted_and_the_result_is_an_ordinary_tensor(images_B):
    mc = MonteCarloDropout(mlp())
    found = mc.sample(images_B.numpy(), samples=4)
    assert torch.equal(found, mc.sample(images_B, samples=4))
    assert not found.requires_grad
    found += 1  # an inference tensor would refuse


def test_images_are_left_alone_by_in_place_layers(images_B):
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(36, 5))
    before = images_B.clone()
    MonteCarloDropout(network).sample(images_B - 0.5, samples=4)
    MonteCarloDropout(network).sample(images_B, samples=4)
    assert torch.equal(images_B, before)


@pytest.mark.parametrize("call", ["predict", "sample"])
@pytest.mark.parametrize("given", [Tensor, Tensor.numpy], ids=["tensor", "array"])
def test_in_place_layers_do_not_modify_the_images(images_B, call, given):
    network = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(36, 5))
    images = given(images_B - 0.5)
    before = images.copy() if isinstance(images, np.ndarray) else images.clone()
    getattr(MonteCarloDropout(network), call)(images)
    assert (images == before).all()


@pytest.mark.parametrize("samples", [2, 300])
def test_no_images_give_no_rows(network, images_B, samples):
    mc = MonteCarloDropout(network)
    assert mc.sample(images_B[:0], samples=samples).shape == (samples, 0, 5)
    assert mc.predict(images_B[:0]).shape == (0, 5)


@pytest.mark.parametrize("position", [1, 2])
def test_dropping_everything_leaves_the_following_layers(images_B, position):
    layers = [nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 5)]
    layers.insert(position, nn.Dropout(1.0))
    expected = layers[-1].bias.softmax(dim=-1).expand(3, 5, -1)
    assert torch.allclose(MonteCarloDropout(nn.Sequential(*layers)).sample(images_B, samples=3), expected)


class Skip(nn.Sequential):
    """A sequence that does more than one layer after the other."""

    def forward(self, features: Tensor) -> Tensor:
        return features + super().forward(features)


def test_sequence_with_its_own_forward_uses_it(images_B):
    network = nn.Sequential(nn.Flatten(), Skip(nn.Linear(36, 36), nn.ReLU()), nn.Dropout(0.5), nn.Linear(36, 5)).eval()
    assert torch.allclose(MonteCarloDropout(network).predict(images_B), network(images_B).softmax(dim=-1), atol=1e-6)


def loop_of_keeps(forward, images_B: Tensor, sites: list[tuple[int, float]], samples: int) -> Tensor:
    """One image and one mask after the other, through a forward that takes the factors of its uses of dropout."""
    keeps = [keep_masks((units,), p, samples=samples, seed=4, layer=site) for site, (units, p) in enumerate(sites)]
    factors = [torch.tensor(keep, dtype=torch.float32) / (1 - p) for keep, (_, p) in zip(keeps, sites, strict=True)]
    with torch.no_grad():
        return torch.stack(
            [
                torch.cat([forward(image, *one).softmax(dim=-1) for image in images_B.split(1)])
                for one in zip(*factors, strict=True)
            ]
        )


def test_dropout_in_a_sequence_with_its_own_forward_is_masked(images_B):
    linear, last = nn.Linear(36, 36), nn.Linear(36, 5)
    network = nn.Sequential(nn.Flatten(), Skip(linear, nn.Dropout(0.5)), nn.Dropout(0.2), last)
    found = MonteCarloDropout(network).sample(images_B, samples=12, seed=4)

    def forward(image: Tensor, first: Tensor, second: Tensor) -> Tensor:
        units = image.flatten(1)
        return last((units + linear(units) * first) * second)

    assert torch.allclose(found, loop_of_keeps(forward, images_B, [(36, 0.5), (36, 0.2)], 12), atol=1e-6)


def test_hooks_of_a_sequence_are_called(images_B):
    network = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Dropout(0)), nn.Dropout(0.5), nn.Linear(36, 5)).eval()
    handle = network[0].register_forward_hook(lambda *args: 2 * args[-1])
    assert torch.allclose(MonteCarloDropout(network).predict(images_B), network(images_B).softmax(dim=-1), atol=1e-6)
    handle.remove()
    network.register_forward_pre_hook(lambda _, images: (images[0] / 2,))
    halved = MonteCarloDropout(network).sample(images_B, samples=4)
    network._forward_pre_hooks.clear()
    assert torch.allclose(halved, MonteCarloDropout(network).sample(images_B / 2, samples=4), atol=1e-6)


class OwnDropout(nn.Dropout):
    def forward(self, features: Tensor) -> Tensor:
        return features + torch.rand_like(features)


def test_dropout_with_a_forward_of_its_own_is_refused():
    with pytest.raises(TypeError, match="layer 1: OwnDropout can't be masked there"):
        MonteCarloDropout(nn.Sequential(nn.Flatten(), OwnDropout(0.5), nn.Dropout(0.5), nn.Linear(36, 5)))


class OfRows(nn.Module):
    """A layer of sequences, applied to sequences of one row."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        rows = features[:, None]
        given = (rows, rows, rows) if isinstance(self.inner, nn.MultiheadAttention) else (rows,)
        return self.inner(*given)[0][:, 0]


def test_recurrent_dropout_between_layers_is_refused():
    inner = nn.LSTM(36, 36, num_layers=2, dropout=0.1, batch_first=True)
    with pytest.raises(TypeError, match=r"layer 1\.inner: LSTM can't be masked there"):
        MonteCarloDropout(nn.Sequential(nn.Flatten(), OfRows(inner), nn.Dropout(0.5), nn.Linear(36, 5)))


def test_dropout_of_attention_is_masked(images_B):
    """A row attends to itself only: its one weight is dropped or not."""
    inner, last = nn.MultiheadAttention(36, 2, dropout=0.4, batch_first=True), nn.Linear(36, 5)
    network = nn.Sequential(nn.Flatten(), OfRows(inner), last)
    found = MonteCarloDropout(network).sample(images_B, samples=12, seed=4)

    def forward(image: Tensor, of_heads: Tensor) -> Tensor:
        weight, bias = inner.in_proj_weight[72:], inner.in_proj_bias[72:]
        values = nn.functional.linear(image.flatten(1), weight, bias)
        return last(inner.out_proj(values * of_heads.repeat_interleave(18)))

    assert torch.allclose(found, loop_of_keeps(forward, images_B, [(2, 0.4)], 12), atol=1e-6)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Flatten(), nn.Dropout1d(0.5), nn.Linear(36, 5)],
        [nn.Conv2d(1, 3, 3), nn.Dropout3d(0.5), nn.Flatten(), nn.Linear(48, 5)],
    ],
    ids=["Dropout1d of vectors", "Dropout3d of images"],
)
def test_channel_dropout_of_unbatched_shapes_is_refused(layers, images_B):
    """In train mode torch drops whole images there: F.dropout1d reads (B, H) as (channels, length)."""
    name = type(layers[1]).__name__
    with pytest.raises((TypeError, ValueError), match=name):
        MonteCarloDropout(nn.Sequential(*layers)).sample(images_B, samples=4)


def test_dropout_on_the_input_has_no_prefix(images_B):
    network = first_layer()
    found = MonteCarloDropout(network).sample(images_B, samples=20, seed=2)
    assert torch.allclose(found, loop_of_masks(flat(network), images_B, 20, seed=2), atol=1e-6)


class Residual(nn.Module):
    def __init__(self, *, p: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(36, 36), nn.Dropout(p))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.inner(features)


DROPOUT, END = nn.Dropout(0.5), nn.Linear(36, 5)
PROBABILITIES = [nn.Softmax(-1), nn.LogSoftmax(-1), nn.Softmin(-1), nn.Sigmoid()]


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([nn.Flatten(), END], ValueError, "no active dropout: it needs an nn.Dropout with p > 0"),
        ([nn.Flatten(), nn.Dropout(0), END], ValueError, "no active dropout"),
        ([], ValueError, "no active dropout"),
        *[
            (
                [nn.Flatten(), DROPOUT, END, nn.Sequential(last)],
                TypeError,
                rf"must end in logits, but its last layer 3\.0 is {type(last).__name__}$",
            )
            for last in PROBABILITIES
        ],
        ([nn.Flatten(), nn.AlphaDropout(0.5), END], TypeError, "layer 1: AlphaDropout can't be masked there"),
        (
            [nn.Sequential(nn.FeatureAlphaDropout(0.5)), nn.Flatten(), DROPOUT, END],
            TypeError,
            r"layer 0\.0: FeatureAlphaDropout can't be masked there",
        ),
    ],
)
def test_networks_that_cant_be_sampled_are_refused(layers, error, message):
    with pytest.raises(error, match=message):
        MonteCarloDropout(nn.Sequential(*layers))


def test_any_module_is_masked(images_B):
    residual, last = Residual(p=0.5), nn.Linear(36, 5)
    network = nn.Sequential(nn.Flatten(), residual, nn.Dropout(0.2), last)
    found = MonteCarloDropout(network).sample(images_B, samples=12, seed=4)

    def forward(image: Tensor, first: Tensor, second: Tensor) -> Tensor:
        units = image.flatten(1)
        return last((units + residual.inner[0](units) * first) * second)

    assert torch.allclose(found, loop_of_keeps(forward, images_B, [(36, 0.5), (36, 0.2)], 12), atol=1e-6)


def test_one_logit_is_refused(images_B):
    network = nn.Sequential(nn.Flatten(), Residual(p=0.5), nn.Linear(36, 1))
    for call in (MonteCarloDropout(network).predict, MonteCarloDropout(network).sample):
        with pytest.raises(ValueError, match="one number for each image"):
            call(images_B)


def test_module_without_reachable_dropout_is_refused(images_B):
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(36, 5)

        def forward(self, images_B: Tensor) -> Tensor:
            units = images_B.flatten(1)
            return self.last(nn.functional.dropout(units) if self.training else units)

    with pytest.raises(ValueError, match="no dropout is reached in eval mode"):
        MonteCarloDropout(Asking()).sample(images_B)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(36), nn.RReLU(), Residual(p=0), nn.LayerNorm(36).eval()],
    ids=lambda layer: type(layer).__name__,
)
def test_mode_dependent_layers_must_be_in_eval_mode(layer, images_B):
    network = nn.Sequential(nn.Flatten(), layer, DROPOUT, END)
    mc = MonteCarloDropout(network)
    if not isinstance(layer, nn.LayerNorm):  # which computes the same in either mode
        for call in (mc.predict, mc.sample):
            with pytest.raises(ValueError, match=rf"layer 1: {type(layer).__name__} is random or depends on the batch"):
                call(images_B)
    network.eval()
    assert mc.sample(images_B, samples=2).shape == (2, 5, 5)


def test_batch_norm_without_statistics_is_refused_in_eval_mode(images_B):
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36, track_running_stats=False), DROPOUT, END).eval()
    with pytest.raises(ValueError, match="a batch norm also needs running statistics"):
        MonteCarloDropout(network).sample(images_B)


def test_bad_requests_are_refused(images_B):
    mc = MonteCarloDropout(mlp())
    for samples in (1, 0, -5):
        with pytest.raises(ValueError, match=f"samples must be at least 2, got {samples}: one mask has no spread"):
            mc.sample(images_B, samples=samples)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=rf"seed must be in 0\.\.2\*\*64 - 1, got {seed}"):
            mc.sample(images_B, seed=seed)
    for call in (mc.sample, mc.predict):
        with pytest.raises(TypeError, match=r"must be floating-point, got torch\.uint8: divide 0\.\.255 by 255"):
            call((images_B * 255).to(torch.uint8))


def test_a_seed_out_of_range_is_refused_without_images_too(images_B):
    with pytest.raises(ValueError, match=r"seed must be in 0\.\.2\*\*64 - 1, got -1"):
        MonteCarloDropout(mlp()).sample(images_B[:0], seed=-1)


def test_linear_layer_with_hooks_or_own_forward_is_called(images_B):
    network = mlp()
    plain = MonteCarloDropout(network).sample(images_B, samples=5)
    handle = network.hidden2.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    hooked = MonteCarloDropout(network).sample(images_B, samples=5)
    handle.remove()
    assert torch.equal(MonteCarloDropout(network).sample(images_B, samples=5), plain)
    assert not torch.allclose(hooked, plain, atol=1e-3)


def test_weights_changed_after_construction_are_the_ones_used(images_B):
    network = mlp()
    mc = MonteCarloDropout(network)
    mc.sample(images_B, samples=5)
    with torch.no_grad():
        network.hidden2.weight.mul_(3)
    assert torch.equal(mc.sample(images_B, samples=5), MonteCarloDropout(network).sample(images_B, samples=5))


def replaced(weight: Tensor) -> Tensor:
    return -weight


def transposed(weight: Tensor) -> Tensor:
    """The same memory, read otherwise."""
    return weight.T


@pytest.mark.parametrize("change", [replaced, transposed])
def test_weights_put_elsewhere_after_construction_are_the_ones_used(images_B, change):
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.ReLU(), nn.Dropout(0.5), nn.Linear(36, 36))
    mc, moments = MonteCarloDropout(network), MomentPropagation(network)
    for layer in (network[1], network[4]):
        mc.sample(images_B)
        moments.predict(images_B)
        layer.weight.data = change(layer.weight.data)
        with torch.no_grad():
            expected = loop_of_masks(list(network), images_B, 20, seed=6)
        assert torch.allclose(mc.sample(images_B, samples=20, seed=6), expected, atol=1e-6)
        assert torch.equal(moments.predict(images_B).mean, MomentPropagation(network).predict(images_B).mean)


def test_a_hook_of_later_is_called(images_B):
    network = mlp()
    mc = MonteCarloDropout(network)
    plain = mc.sample(images_B, samples=5)
    for layer in (network[1], network[-1]):
        handle = layer.register_forward_hook(lambda *args: 3 * args[-1])
        hooked = mc.sample(images_B, samples=5)
        handle.remove()
        assert torch.equal(mc.sample(images_B, samples=5), plain)
        assert not torch.allclose(hooked, plain, atol=1e-3)


def test_many_chunks_in_several_rows_equal_the_loop(images_B, monkeypatch):
    monkeypatch.setattr("model.network.chain._CHUNKS_PER_GROUP", 2)
    network = mlp().requires_grad_(requires_grad=False).eval()
    found = MonteCarloDropout(network).sample(images_B, samples=530, seed=6)
    assert torch.allclose(found, loop_of_masks(flat(network), images_B, 530, seed=6), atol=1e-6)


@pytest.mark.parametrize(
    ("computing", "call"),
    [
        ("model.network.chain.run", lambda network: MonteCarloDropout(network).sample),
        ("model.moments.run", lambda network: MomentPropagation(network).predict),
    ],
)
def test_numpy_computes_on_one_thread(images_B, monkeypatch, computing, call):
    pools, seen = ThreadpoolController().select(user_api="blas").lib_controllers, []
    blas = [pool for pool in pools if "numpy" in pool.filepath]  # SciPy has its own, for matrices of a row a class

    def watch(stages: list[Stage], units_U: np.ndarray) -> np.ndarray:
        seen.extend(pool.get_num_threads() for pool in blas)
        return run(stages, units_U)

    monkeypatch.setattr(computing, watch)
    with threadpool_limits(2, user_api="blas"):
        call(mlp())(images_B)
    assert seen
    assert set(seen) == {1}


def test_number_of_threads_is_restored_and_changes_no_result(images_B):
    network = build_mlp(MLPConfig(image=(1, 6, 6), hidden=(300, 300), dropout=(0.2, 0.5)))
    calls = (MonteCarloDropout(network).sample, lambda images_B: MomentPropagation(network).predict(images_B).mean)
    blas = ThreadpoolController().select(user_api="blas").lib_controllers
    for call in calls:
        found = []
        for threads in (1, 2):
            with threadpool_limits(threads, user_api="blas"):
                found.append(call(images_B))
                assert [pool.get_num_threads() for pool in blas] == [threads] * len(blas)
        assert torch.equal(*found)


def test_images_that_want_gradients_are_taken(images_B):
    network = mlp()
    expected = MonteCarloDropout(network).sample(images_B, samples=5)
    assert torch.equal(MonteCarloDropout(network).sample(images_B.requires_grad_(), samples=5), expected)


def test_nan_units_are_not_skipped(images_B):
    network = mlp()
    images_B[0, 0, 0, 0] = torch.nan
    assert MonteCarloDropout(network).sample(images_B, samples=5)[:, 0].isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_same_numbers(network, images_B):
    expected = (
        MonteCarloDropout(network).sample(images_B, samples=130, seed=3),
        MonteCarloDropout(network).predict(images_B),
    )
    mc = MonteCarloDropout(network.cuda())
    found = mc.sample(images_B.cuda(), samples=130, seed=3), mc.predict(images_B)
    for one, other in zip(found, expected, strict=True):
        assert one.is_cuda
        assert torch.allclose(one.cpu(), other, atol=1e-4)
    assert torch.allclose(summarize(found[0]).mean, summarize(expected[0]).mean, atol=1e-4)


@pytest.mark.parametrize("make", [mlp, lambda: nn.Sequential(nn.Flatten(), Residual(p=0.5), nn.Linear(36, 5))])
def test_gradients_reach_the_parameters_through_masks(make, images_B):
    torch.manual_seed(5)
    network = make()
    mc = MonteCarloDropout(network)
    probs_SBC = mc.sample(images_B, samples=6, seed=3, gradients=True)
    assert torch.allclose(probs_SBC, mc.sample(images_B, samples=6, seed=3), atol=1e-6)
    probs_SBC.mean(dim=0)[:, 0].sum().backward()
    weight = next(module.weight for module in network.modules() if isinstance(module, nn.Linear))
    found, step = weight.grad[2, 3].item(), 1e-2
    with torch.no_grad():
        changed = []
        for shift in (step, -2 * step):
            weight[2, 3] += shift
            changed.append(mc.sample(images_B, samples=6, seed=3).mean(dim=0)[:, 0].sum().item())
    assert found == pytest.approx((changed[0] - changed[1]) / (2 * step), abs=2e-4)


def test_changes_of_any_module_take_effect(images_B):
    residual = Residual(p=0.5)
    network = nn.Sequential(nn.Flatten(), residual, nn.Linear(36, 5))
    mc = MonteCarloDropout(network)
    mc.sample(images_B, samples=4)
    residual.inner[1].p = 0.2
    residual.inner[0] = nn.Linear(36, 36)
    expected = MonteCarloDropout(network).sample(images_B, samples=4)
    assert torch.equal(mc.sample(images_B, samples=4), expected)
