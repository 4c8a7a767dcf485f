"""Compiled networks against loops over masks, networks in train mode, and torch in eval mode; and what is refused."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo import IMAGES_B, ZOO, loop, make

from model.network.compile import Compiled, compile_network, compile_to_files
from model.network.tracing import CompileError

SAMPLES, SEED = 12, 5


@dataclass
class Case:
    """A network as it was, as it is after it was compiled, and the result."""

    before: nn.Module
    network: nn.Module
    compiled: Compiled


@pytest.fixture(scope="module", params=ZOO)
def case(request) -> Case:
    network, example_1 = make(request.param), IMAGES_B[:1].clone()
    before, state = copy.deepcopy(network), torch.get_rng_state()
    compiled = compile_to_files(network, example_1)
    assert torch.equal(example_1, IMAGES_B[:1])
    assert torch.equal(torch.get_rng_state(), state)
    return Case(before, network, compiled)


def relative(found: np.ndarray, expected: Tensor) -> float:
    return float(np.abs(found - expected.numpy()).max() / expected.abs().max())


@pytest.mark.parametrize("masks", ["stratified", "independent"])
def test_a_compiled_network_equals_the_loop_over_masks(case, masks):
    found = case.compiled.graph().logits(IMAGES_B.numpy(), (range(SAMPLES), SEED, masks))
    loops = [loop(case.network, image[None], SAMPLES, SEED, masks) for image in IMAGES_B]
    assert found.std(axis=0).max() > 1e-3
    assert relative(found, torch.stack([logits_SC for logits_SC, _ in loops], dim=1)) < 1e-5
    assert [(site.p, np.prod(site.shape)) for site in case.compiled.spec.sites] == loops[0][1]


def test_a_compiled_network_has_the_distribution_of_train_mode(case):
    """One image repeated, each time with masks of its own: mean and variance within 5 standard errors."""
    passes = 4000
    trained = copy.deepcopy(case.network).train()
    for layer in trained.modules():
        layer.training = not isinstance(layer, nn.BatchNorm2d)
    with torch.random.fork_rng():
        torch.manual_seed(33)
        train = trained(IMAGES_B[:1].repeat(passes, 1, 1, 1)).double()
    masked = case.compiled.graph().logits(IMAGES_B[:1].numpy(), (range(passes), 6, "independent"))[:, 0]
    masked = torch.from_numpy(masked).double()
    for one, other in ((train, masked), [(logits - logits.mean(0)) ** 2 for logits in (train, masked)]):
        assert ((one.mean(0) - other.mean(0)).abs() <= 5 * ((one.var(0) + other.var(0)) / passes).sqrt()).all()


def test_without_masks_it_equals_torch_in_eval_mode(case):
    graph, network = case.compiled.graph(), copy.deepcopy(case.network).eval()
    expected = network(IMAGES_B.clone())
    assert relative(graph.logits(IMAGES_B.numpy())[0], expected) < 1e-5
    assert relative(graph.predict(IMAGES_B.numpy()), expected.softmax(-1)) < 1e-5


def test_compiling_leaves_the_network_as_it_was(case):
    modules = list(zip(case.before.modules(), case.network.modules(), strict=True))
    assert [one.training for one, _ in modules] == [other.training for _, other in modules]
    before, after = case.before.state_dict(), case.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for one, other in modules:
        assert vars(one).keys() == vars(other).keys()
        assert (len(one._forward_hooks), len(one._forward_pre_hooks)) == (0, 0)
        assert (len(other._forward_hooks), len(other._forward_pre_hooks)) == (0, 0)
    assert case.network(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


class Small(nn.Module):
    """Two linear layers, and whatever a test computes with them."""

    def __init__(self, compute: Callable[["Small", Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.first, self.second, self.one = nn.Linear(64, 6), nn.Linear(6, 4), nn.Linear(6, 1)
        self.drop, self.in_place = nn.Dropout(0.3), nn.Dropout(0.3, inplace=True)
        self.calls, self.compute = 0, compute
        self.register_buffer("steps", torch.zeros(()))

    def features(self, images: Tensor) -> Tensor:
        return self.first(images.flatten(1)).relu()

    def forward(self, images: Tensor) -> Tensor:
        return self.compute(self, images) if self.compute else self.second(self.drop(self.features(images)))


def test_hooks_take_effect_and_stay():
    network = Small().eval()
    plain = network(IMAGES_B)
    network.first.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    handle = network.drop.register_forward_hook(lambda *args: args[-1] + 1)
    hooked = network(IMAGES_B).detach()
    graph = compile_network(network, IMAGES_B[0])
    assert relative(graph.logits(IMAGES_B.numpy())[0], hooked) < 1e-5
    assert torch.equal(network(IMAGES_B), hooked)
    handle.remove()
    network.first._forward_pre_hooks.clear()
    assert torch.equal(network(IMAGES_B), plain)


def count_steps(network: Small, images: Tensor) -> Tensor:
    network.steps.add_(1)
    return network.second(network.drop(network.features(images)))


def test_buffers_that_count_are_unchanged():
    network = Small(count_steps)
    compile_network(network, IMAGES_B[0])
    assert network.steps == 0


def only_in_train_mode(network: Small, images: Tensor) -> Tensor:
    features = network.features(images)
    if network.training:
        features = network.drop(features)
    return network.second(features)


def depends_on_values(network: Small, images: Tensor) -> Tensor:
    features = network.drop(network.features(images))
    return network.second(-features if images.mean() > 0 else features)


def depends_on_number(network: Small, images: Tensor) -> Tensor:
    features = network.drop(network.features(images))
    return network.second(-features if len(images) > 3 else features)


def counts_calls(network: Small, images: Tensor) -> Tensor:
    network.calls += 1
    return network.second(network.drop(network.features(images))) * network.calls


def uses_counted_steps(network: Small, images: Tensor) -> Tensor:
    return count_steps(network, images) * network.steps


def changes_after_use(network: Small, images: Tensor) -> Tensor:
    features = network.features(images)
    dropped = network.drop(features)
    return network.second(features.mul_(2) + dropped)


def changes_a_part(network: Small, images: Tensor) -> Tensor:
    features = network.features(images).unsqueeze(1).repeat(1, 2, 1)
    features[:, 0] = network.drop(features[:, 1])
    return network.second(features.mean(1))


def uses_what_dropout_changed(network: Small, images: Tensor) -> Tensor:
    features = network.features(images)
    view = features.view(-1, 3, 2)
    return network.second(network.in_place(features)) + view.sum()


def logits(network: Small, images: Tensor) -> Tensor:
    return network.second(network.drop(network.features(images)))


RANDOM = r"is random, and no mask can replace it; use nn\.Dropout"
DIFFERS = r"the graph differs from torch in .* depends on more than an image and masks"
REFUSED = {
    "no dropout": (lambda n, x: n.second(n.features(x)), "no dropout is reached in eval mode"),
    "only in train mode": (only_in_train_mode, r"no dropout is reached .* not inside `if self\.training:`"),
    "without effect": (lambda n, x: [n.drop(n.features(x)), n.second(n.features(x))][1], "don't depend on any dropout"),
    "a tuple": (lambda n, x: (logits(n, x), x), "must return one tensor of logits, got tuple"),
    "a dictionary": (lambda n, x: {"logits": logits(n, x)}, "must return one tensor of logits, got dict"),
    "softmax": (lambda n, x: logits(n, x).softmax(-1), "must return logits, but ends in softmax: remove it"),
    "log_softmax": (lambda n, x: functional.log_softmax(logits(n, x), 1), "ends in log_softmax: remove it"),
    "one number": (lambda n, x: n.one(n.drop(n.features(x))), "one number for each image.* must have two logits"),
    "a mean of images": (lambda n, x: logits(n, x).mean(0, keepdim=True), "one row of logits for each image"),
    "no axis of images": (lambda n, x: logits(n, x).mean(0), r"must return logits \(images, classes\), got \[4\]"),
    "classes": (lambda n, x: logits(n, x).argmax(1), r"must return logits \(images, classes\), got"),
    "flow by values": (depends_on_values, "control flow must not depend on the values of the images"),
    "flow by number": (depends_on_number, "nor its shapes on their number"),
    "a number": (lambda n, x: logits(n, x) * x.max().item(), r"leave it a tensor \(no \.item\(\)\)"),
    "alpha": (
        lambda n, x: n.second(functional.alpha_dropout(n.features(x), 0.2)),
        "alpha_dropout can't be replaced by a mask",
    ),
    "rand_like": (lambda n, x: logits(n, x + torch.rand_like(x)), f"the network: aten.rand_like.default {RANDOM}"),
    "bernoulli": (lambda n, x: logits(n, x) * torch.bernoulli(torch.full((4,), 0.5)), f"aten.bernoulli.* {RANDOM}"),
    "a parameter": (
        lambda n, x: functional.linear(n.features(x), functional.dropout(n.second.weight)),
        "the network: only dropout of activations can be masked, not that of parameters",
    ),
    "channels of vectors": (
        lambda n, x: n.second(functional.dropout1d(n.features(x))),
        "dropout1d of 2 axes takes the images",
    ),
    "channels of images": (
        lambda n, x: logits(n, functional.dropout3d(x)),
        "dropout3d of 4 axes takes the images for channels; use dropout of units",
    ),
    "a count of calls": (counts_calls, DIFFERS),
    "a count in a buffer": (uses_counted_steps, DIFFERS),
    "a change after use": (changes_after_use, f"{DIFFERS}.* changed in place after its use"),
    "a change of a part": (changes_a_part, "changed in place"),
    "what dropout changed": (uses_what_dropout_changed, "what dropout changes in place is used again"),
    "images that are mixed": (lambda n, x: logits(n, x - x.mean(0)), f"{DIFFERS}.* other images"),
    "masks that are mixed": (lambda n, x: logits(n, x).cumsum(0), DIFFERS),
    "not finite": (lambda n, x: logits(n, x) / 0, "the logits of the example image are not finite"),
    "zeros": (lambda n, x: logits(n, x) * 0, "all logits of the example image are 0"),
}


@pytest.mark.parametrize(("compute", "message"), REFUSED.values(), ids=REFUSED)
def test_a_network_that_cant_be_compiled_is_refused(compute, message):
    torch.manual_seed(34)
    with pytest.raises(CompileError, match=message):
        compile_network(Small(compute), IMAGES_B[0])


class Two(Small):
    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return super().forward(images + others)


def with_nan() -> nn.Module:
    network = Small()
    with torch.no_grad():
        network.second.weight[1, 2] = torch.nan
    return network


def with_layers() -> nn.Module:
    network = make("recurrent")
    network.lstm = nn.LSTM(6, 6, num_layers=2, dropout=0.2, batch_first=True)
    return network


@pytest.mark.parametrize(
    ("make_network", "message"),
    [
        (Two, "must have one input, the images; its forward takes images, others"),
        (lambda: Small().double(), r"first\.weight is torch\.float64 on cpu: compile a float32 network on the CPU"),
        (with_nan, r"second\.weight has values that are not finite"),
        (
            with_layers,
            "layer lstm: LSTM can't be masked there: its dropout is between its layers; use modules of one layer",
        ),
    ],
    ids=["inputs", "double", "nan", "recurrent"],
)
def test_inputs_parameters_and_layers_that_dont_fit_are_refused(make_network, message):
    with pytest.raises(CompileError, match=message):
        compile_network(make_network(), IMAGES_B[0])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ((IMAGES_B[0] * 255).to(torch.uint8), r"must be float32, got torch\.uint8"),
        (IMAGES_B[0].double(), r"must be float32, got torch\.float64"),
        (IMAGES_B, r"must be one image, got \[3, 1, 8, 8\]"),
        (torch.ones(1, 9, 9), r"the network fails on an image of shape \[1, 1, 9, 9\]: RuntimeError: mat1 and mat2"),
    ],
    ids=["integers", "double", "several", "size"],
)
def test_an_example_that_doesnt_fit_is_refused(image, message):
    with pytest.raises(CompileError, match=message):
        compile_network(Small(), image)
