"""Moments of compiled networks: which layers are recognized, what is stored of them, and what they predict."""

import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo import IMAGES_B, MLP, Attention, Dense, Residual

from model import Artifact, ArtifactError, MLPConfig, MomentPropagation, build_mlp, load_artifact, save_compiled
from model.artifact import CARD, CHAIN, POINTS
from model.chain import Chain, run
from model.graph import MAIN, PREFIX
from model.network import compile_to_files
from model.network.mlp import build_with_weights
from model.network.tracing import MaskedNetwork, trace

CLASSES = ["a", "b", "c", "d"]
IMAGES = IMAGES_B.numpy()


class LeNet(nn.Module):
    """Dropout as functions: of the maps before they are flattened, and of units, some of it before the ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 20), nn.Linear(20, 16)
        self.head = nn.Linear(16, 4, bias=False)

    def before(self, images: Tensor) -> Tensor:
        return functional.max_pool2d(self.conv(images).relu(), 2)

    def forward(self, images: Tensor) -> Tensor:
        units = functional.dropout(self.before(images), 0.1, self.training).flatten(1)
        units = functional.relu(functional.dropout(self.first(units), 0.2, self.training), inplace=True)
        units = functional.dropout(self.second(functional.dropout(units, 0, self.training)), 0.1, self.training)
        return self.head(functional.dropout(units.view(images.shape[0], -1), 0.1, self.training))

    def tail(self) -> nn.Sequential:
        """The same layers as modules."""
        return nn.Sequential(
            *(nn.Flatten(), nn.Dropout(0.1), self.first, nn.Dropout(0.2), nn.ReLU()),
            *(self.second, nn.Dropout(0.1), nn.Dropout(0.1), self.head),
        )


class ResidualHead(Residual):
    """Residual blocks with batch norm, and dropout only before the last layer, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.drops = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.linear, self.head = self.head, nn.Identity()
        self.drop = nn.Dropout(0.4)

    def before(self, images: Tensor) -> Tensor:
        return super().forward(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.drop(self.before(images)))

    def tail(self) -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), self.drop, self.linear)


NETWORKS = [LeNet, ResidualHead]


def make(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(61)
    network = kind().requires_grad_(requires_grad=False)
    network(torch.randn(64, 1, 8, 8))  # gives batch norm its statistics
    return network.eval()


def traced(network: nn.Module) -> MaskedNetwork:
    return trace(network, IMAGES_B[:1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[type, Path]:
    found = {}
    for kind in NETWORKS:
        found[kind] = tmp_path_factory.mktemp(kind.__name__)
        save_compiled(found[kind], compile_to_files(make(kind), IMAGES[0]), {"classes": CLASSES})
    return found


@pytest.fixture(scope="module")
def artifacts(folders) -> dict[type, Artifact]:
    return {kind: load_artifact(folder) for kind, folder in folders.items()}


@pytest.fixture
def folder(tmp_path, folders) -> Path:
    return Path(shutil.copytree(folders[LeNet], tmp_path / "artifact"))


def change_chain(folder: Path, change) -> None:
    card = json.loads((folder / CARD).read_text())
    change(card["chain"])
    (folder / CARD).write_text(json.dumps(card))


def change_arrays(folder: Path, change) -> None:
    """Other layers, for which the card vouches."""
    arrays = safetensors.numpy.load_file(folder / CHAIN)
    change(arrays)
    data = safetensors.numpy.save(arrays)
    (folder / CHAIN).write_bytes(data)
    change_chain(folder, lambda chain: chain.update(sha256=hashlib.sha256(data).hexdigest()))


def assert_refused(folder: Path, file: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=f"^{re.escape(str(folder / file))}: {message}$"):
        load_artifact(folder)


@pytest.mark.parametrize("kind", NETWORKS)
def test_moments_of_a_compiled_network_are_those_of_its_live_layers(artifacts, kind):
    network, artifact = make(kind), artifacts[kind]
    assert artifact.moments_unavailable is None
    assert PREFIX in artifact.files
    found = artifact.moments.predict(IMAGES)
    expected = MomentPropagation(network.tail()).predict(network.before(IMAGES_B))
    for name in ("mean", "covariance", "predictive_entropy", "expected_entropy", "mutual_information"):
        assert np.allclose(getattr(found, name), getattr(expected, name).numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", NETWORKS)
def test_moments_of_a_compiled_network_are_those_of_many_masks(artifacts, kind):
    found = artifacts[kind].moments.predict(IMAGES)
    masks = artifacts[kind].engine.estimate(IMAGES, 4000, 5)
    assert np.all(np.abs(found.mean - masks.mean) < 4 * masks.standard_error + 1e-3)
    assert np.allclose(found.variance, masks.variance, rtol=0.1, atol=1e-5)
    assert np.allclose(found.mutual_information, masks.mutual_information, rtol=0.1)


def test_moments_of_an_image_do_not_depend_on_the_others(artifacts):
    moments = artifacts[LeNet].moments
    together = moments.predict(IMAGES)
    for index in range(len(IMAGES)):
        alone = moments.predict(IMAGES[index : index + 1])
        assert np.array_equal(alone.covariance[0], together.covariance[index])
    assert moments.predict(IMAGES[:0]).mean.shape == (0, 4)


def test_the_part_before_the_dropout_runs_once_for_an_image(folders):
    artifact, runs = load_artifact(folders[LeNet]), []
    prefix = artifact.engine._prefix

    class Counting:
        def run(self, *arguments):
            runs.append(arguments)
            return prefix.run(*arguments)

    artifact.engine._prefix = Counting()
    artifact.moments.predict(IMAGES)
    assert len(runs) == len(IMAGES)


def test_images_of_another_kind_are_refused(artifacts):
    moments = artifacts[LeNet].moments
    with pytest.raises(ValueError, match=r"images must have the shape \(B, 1, 8, 8\), got \(3, 64\)"):
        moments.predict(IMAGES.reshape(3, 64))
    with pytest.raises(TypeError, match="images must be float32, got float64"):
        moments.predict(IMAGES.astype(np.float64))
    with pytest.raises(ValueError, match="the images must be finite"):
        moments.predict(np.full_like(IMAGES, np.nan))


def test_the_layers_of_an_mlp_are_its_arrays():
    """From the image itself, without a separate first part."""
    config = MLPConfig(image=(1, 8, 8), hidden=(12, 10, 8), dropout=(0, 0.3, 0.2), classes=4)
    weights = {name: tensor.detach().numpy() for name, tensor in build_mlp(config).state_dict().items()}
    found = traced(build_with_weights(config, weights))
    expected = Chain.of_mlp(config, weights)
    assert (found.prefix, found.no_chain) == (None, None)
    assert found.chain.to_json() == expected.to_json()
    for one, other in zip(found.chain.stages(), expected.stages(), strict=True):
        for stage, of_mlp in zip(one, other, strict=True):
            assert stage.dropouts == of_mlp.dropouts
            assert all(map(np.array_equal, stage.linear.arrays(), of_mlp.linear.arrays()))


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_layers_after_the_first_part_give_the_logits(kind):
    network = make(kind)
    chain = traced(network).chain
    assert not chain.before
    for image in IMAGES_B:
        logits_C = run(chain.after, network.before(image[None]).flatten().numpy())
        assert np.allclose(logits_C, network(image[None])[0], atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_after_a_linear_layer_is_part_of_it(affine):
    torch.manual_seed(62)
    norms = [nn.BatchNorm1d(size, eps=0.1, affine=affine) for size in (10, 8)]
    for norm in norms:
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    network = nn.Sequential(
        *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10), norms[0], nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(10, 8, bias=False), norms[1], nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4)),
    ).eval()
    chain = traced(network).chain
    assert [stage.relu for stage in chain.after] == [False, True, True]
    for image in IMAGES_B:
        logits_C = run(chain.after, image.flatten().numpy())
        assert np.allclose(logits_C, network(image[None]).detach()[0], atol=1e-5)


class Twice(nn.Module):
    """Units that are changed in place, or used again, after the layer that uses them."""

    def __init__(self, use) -> None:
        super().__init__()
        self.first, self.drop, self.head, self.use = nn.Linear(64, 6), nn.Dropout(0.3), nn.Linear(6, 4), use

    def forward(self, images: Tensor) -> Tensor:
        units = self.drop(self.first(images.flatten(1)))
        return self.head(self.use(units))


def changed_in_place(units: Tensor) -> Tensor:
    units[:, :3].relu_()
    return units


LINEAR = [nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 4)]
CONV_AFTER_DROPOUT = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(1, 1, 3, padding=1), *LINEAR)
OTHERS = [
    ("also has conv2d", CONV_AFTER_DROPOUT),
    ("also has feature_dropout", nn.Sequential(nn.Conv2d(1, 4, 5), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(64, 4))),
    ("also has max_pool2d", nn.Sequential(nn.Dropout(0.2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 4))),
    ("also has gelu", nn.Sequential(*LINEAR, nn.GELU(), nn.Linear(4, 4))),
    ("logits that come from a linear layer", nn.Sequential(*LINEAR, nn.ReLU())),
    ("directly before batch norm", nn.Sequential(*LINEAR, nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 4))),
    ("one vector of units", nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 8), nn.Flatten(), nn.Linear(64, 4))),
    ("weights are parameters", nn.Sequential(*LINEAR, nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))),
    ("an output is used twice \\(layer drop\\)", Twice(changed_in_place)),
    ("also has add", Twice(lambda units: units + units.relu())),
    ("also has add", MLP()),
    ("also has mean", Residual()),
    ("also has amax", Dense()),
    ("also has mean", Attention(batch_first=True)),
]


@pytest.mark.parametrize(("reason", "network"), OTHERS)
def test_other_layers_after_the_first_dropout_have_a_reason(reason, network):
    found = traced(network)
    assert found.chain is None
    assert re.search(reason, found.no_chain)
    assert "\n" not in found.no_chain


def test_a_network_of_other_layers_is_saved_with_the_reason(tmp_path, folders):
    compiled = compile_to_files(CONV_AFTER_DROPOUT, IMAGES[0])
    shutil.copytree(folders[LeNet], tmp_path, dirs_exist_ok=True)
    save_compiled(tmp_path, compiled, {"classes": CLASSES})
    artifact = load_artifact(tmp_path)
    assert artifact.moments is None
    assert artifact.moments_unavailable == compiled.no_chain
    assert "also has conv2d (layer 1)" in compiled.no_chain
    assert not {CHAIN, POINTS} & {path.name for path in tmp_path.iterdir()}


def test_an_artifact_saved_without_layers_says_so(folder):
    card = json.loads((folder / CARD).read_text())
    del card["chain"]
    (folder / CARD).write_text(json.dumps(card))
    artifact = load_artifact(folder)
    assert artifact.moments is None
    assert artifact.moments_unavailable.endswith("compile it again")


def test_too_many_classes_have_no_moments(artifacts):
    many = Artifact({"classes": ["a"] * 101, "chain": {}}, tail=artifacts[LeNet].tail)
    assert many.moments is None
    assert many.moments_unavailable == "moments are for at most 100 classes, and the network has 101"


def test_moments_of_the_embedded_network_are_those_of_its_own_layers():
    artifact = load_artifact()
    images_B = np.random.default_rng(5).random((2, 1, 28, 28), np.float32)
    live = MomentPropagation(artifact.network).predict(images_B)
    assert artifact.moments_unavailable is artifact.tail is None
    assert np.array_equal(artifact.moments.predict(images_B).covariance, live.covariance.numpy())


@pytest.mark.parametrize("file", [CHAIN, POINTS])
def test_a_changed_or_missing_file_is_refused(folder, file):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert_refused(folder, file, r"expected sha256 \w{64}, got \w{64}")
    (folder / file).unlink()
    assert_refused(folder, file, "expected a readable file, got No such file or directory")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CARD, lambda chain: chain.pop("sha256"), r"expected an entry chain\.sha256, got none"),
        (CARD, lambda chain: chain.pop("units"), "chain: units: expected the sizes of the layers, got None"),
        (CARD, lambda chain: chain["units"].insert(0, 0), "chain: units: expected the sizes.*"),
        (CHAIN, lambda chain: chain["units"].pop(), r"tensor 2\.bias: expected none, got float32\[4\]"),
        (CHAIN, lambda chain: chain["units"].append(4), r"tensor 3\.bias: expected float32\[4\], got none"),
        (CARD, lambda chain: chain.pop("stages"), "chain: stages: expected a list of entries with relu and dropout"),
        (CARD, lambda chain: chain["stages"][0].pop("relu"), "chain: stages: expected a list of entries .*"),
        (CARD, lambda chain: chain["stages"].append({"relu": True, "dropout": []}), "chain: stages: .* of 3 layers"),
        (CARD, lambda chain: chain["stages"][0].update(relu="no"), "chain: stages: expected true or false .*"),
        (CARD, lambda chain: chain["stages"][2].update(dropout=[3, 2]), r"chain: stages: .* in order, got \[0, 1, 3.*"),
        (CARD, lambda chain: chain["stages"][2].update(dropout=[]), r"chain: stages: expected each of 4 uses .*"),
        (CHAIN, lambda chain: chain["stages"][1].update(relu=False), "expected the known answer of the card, .*"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(folder, file, change, message):
    change_chain(folder, change)
    assert_refused(folder, file, message)


@pytest.mark.parametrize("value", [None, [], "chain"])
def test_a_description_that_is_none_is_refused(folder, value):
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"chain": value}))
    assert_refused(folder, CARD, "chain: expected a JSON object, got .*")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CHAIN, lambda arrays: arrays.pop("0.bias"), r"tensor 0\.bias: expected float32\[20\], got none"),
        (CHAIN, lambda arrays: arrays.update(more=np.ones(1)), r"tensor more: expected none, got float64\[1\]"),
        (
            CHAIN,
            lambda arrays: arrays.update({"0.weight": arrays["0.weight"].astype(np.float64)}),
            r"tensor 0\.weight: expected float32\[20, 64\], got float64\[20, 64\]",
        ),
        (
            CARD,
            lambda arrays: arrays["1.weight"].__setitem__((0, 0), np.inf),
            r"chain: 1\.weight has values that are not finite",
        ),
        (CHAIN, lambda arrays: arrays["1.weight"].__imul__(1.1), "expected the known answer of the card, got another"),
    ],
)
def test_layers_that_do_not_fit_are_refused(folder, file, change, message):
    change_arrays(folder, change)
    assert_refused(folder, file, message)


@pytest.mark.parametrize("units", [[64, 20, 16, 5], [63, 20, 16, 4]])
def test_layers_of_other_sizes_than_the_graph_are_refused(folder, units):
    sizes = list(itertools.pairwise(units))
    zeros = {f"{number}.weight": np.zeros(size[::-1], np.float32) for number, size in enumerate(sizes)}
    zeros |= {f"{number}.bias": np.zeros(size[1], np.float32) for number, size in enumerate(sizes)}
    change_arrays(folder, lambda arrays: arrays.update(zeros))
    change_chain(folder, lambda chain: chain.update(units=units))
    file, message = (CARD, "chain: expected 4 logits, got 5") if units[-1] == 5 else (CHAIN, "64 units don't match .*")
    assert_refused(folder, file, message)


def test_the_graph_of_a_chain_keeps_its_own_files(folders):
    assert {path.name for path in folders[LeNet].iterdir()} == {CARD, CHAIN, POINTS, MAIN, PREFIX}
