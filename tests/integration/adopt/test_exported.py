"""Networks that torch.export saved compute what the module did, in eval mode and under masks."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from model.masks import MaskRange
from model.network import compile_to_files
from model.network.live import LiveNetwork
from training.adopt.errors import NetworkError
from training.adopt.exported import from_program, load_exported

MASKS: MaskRange = (range(20), 3, "stratified")
IMAGE_1 = torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(70))


class Attending(nn.Module):
    """Attention over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.token = nn.Linear(30, 4), nn.Parameter(torch.rand(1, 1, 30))

    def forward(self, images_B):
        rows = images_B.permute(0, 2, 1, 3).flatten(2)
        rows = torch.cat([self.token.expand(len(rows), -1, -1), rows], dim=1)
        p = 0.2 if self.training else 0.0
        attended = functional.scaled_dot_product_attention(rows, rows, rows, dropout_p=p)
        return self.linear(attended.mean(dim=1))


class Varied(nn.Module):
    """Dropout of channels, of units, in a function; one layer used twice; batch norm; sizes of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.channels = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout2d(0.2)
        self.hidden, self.drop, self.head = nn.Linear(6 * 6 * 8, 16), nn.Dropout(0.4), nn.Linear(16, 5)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, images_B):
        features = self.channels(self.norm(self.convolution(images_B)).relu() * self.scale.view(1, 6, 1, 1))
        features = self.hidden(features.view(features.size(0), -1))
        features = functional.dropout(self.drop(features).relu(), 0.3, self.training)
        return self.head(self.drop(features))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(71)
    network = kind().train()
    for _ in range(3):  # statistics for batch norm
        network(torch.rand(4, *IMAGE_1.shape[1:]))
    return network


def save(path, network: nn.Module, *images: torch.Tensor, dynamic: bool = False):
    axes = tuple({0: torch.export.Dim("images")} for _ in images) if dynamic else None
    torch.export.save(torch.export.export(network, images, dynamic_shapes=axes), path)
    return path


@pytest.mark.parametrize(
    ("kind", "training", "dynamic"),
    [
        (Varied, False, False),
        (Varied, False, True),
        (Varied, True, False),
        (Varied, True, True),
        (Attending, True, False),
    ],
)
def test_it_computes_what_the_module_did(tmp_path, kind, training, dynamic):
    network = made(kind).train(training)
    images = torch.cat([IMAGE_1, IMAGE_1]) if dynamic else IMAGE_1
    original, loaded = (
        LiveNetwork(one)
        for one in (network, load_exported(save(tmp_path / "network.pt2", network, images, dynamic=dynamic)))
    )
    with torch.no_grad():
        assert torch.allclose(loaded.predict(IMAGE_1), original.predict(IMAGE_1), atol=1e-6)
        assert loaded.sites(IMAGE_1) == original.sites(IMAGE_1)
        masked = original.sample(IMAGE_1, MASKS)
        assert torch.allclose(loaded.sample(IMAGE_1, MASKS), masked, atol=1e-5)
        assert masked.std(dim=0).min() > 0


def test_it_compiles_with_the_names_of_its_layers(tmp_path):
    network = made(Varied).eval()
    compiled = compile_to_files(load_exported(save(tmp_path / "network.pt2", network, IMAGE_1)), IMAGE_1)
    names = [site.name for site in compiled.spec.sites]
    assert names[:2] == ["channels", "drop"]
    assert len(set(names)) == len(names) == 4
    images_B = np.random.default_rng(72).random((3, *IMAGE_1.shape[1:]), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images_B)).softmax(dim=1).numpy()
    assert np.allclose(compiled.graph().predict(images_B), expected, atol=1e-5)


class Two(nn.Module):
    """Two inputs."""

    def forward(self, images_B, others_B):
        return (images_B + others_B).flatten(1)


class Heads(nn.Module):
    """Sizes that are the number of images times something."""

    def forward(self, images_B):
        return images_B.reshape(images_B.shape[0] * 2, 120).exp().reshape(images_B.shape[0], -1)


def refused(path, message: str) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        load_exported(path)
    assert "\n" not in str(caught.value)


def test_other_programs_are_refused(tmp_path):
    refused(
        save(tmp_path / "two.pt2", Two(), IMAGE_1, IMAGE_1), r"must take images \(B, C, H, W\) and .* but has 2 inputs"
    )
    three = save(tmp_path / "three.pt2", made(Varied).eval(), IMAGE_1.expand(3, -1, -1, -1))
    refused(three, "was exported for 3 images at once: export it with dynamic_shapes")
    heads = save(tmp_path / "heads.pt2", Heads(), IMAGE_1)
    refused(heads, "exported with one image, and its sizes don't follow .*: export it with dynamic_shapes")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own use of what it deprecates
def test_decomposed_batch_norm_of_train_mode_is_refused():
    decomposed = torch.export.export(made(Varied).train(), (IMAGE_1,)).run_decompositions()
    with pytest.raises(NetworkError, match=r"n\.pt2: .* exported in train mode, .* without run_decompositions"):
        from_program(decomposed, "n.pt2")


def test_files_without_a_program_are_refused(tmp_path):
    refused(tmp_path / "absent.pt2", "expected a readable file, got No such file")
    (tmp_path / "broken.pt2").write_bytes(b"no network")
    refused(tmp_path / "broken.pt2", "expected a network that torch.export.save .* wrote")
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pt2")
    refused(tmp_path / "weights.pt2", "expected a network that torch.export.save .* wrote")


def test_images_of_another_shape_are_refused(tmp_path):
    loaded = load_exported(save(tmp_path / "network.pt2", made(Varied).eval(), IMAGE_1))
    with pytest.raises(ValueError, match="exported for images of 3 x 8 x 10"):
        loaded(torch.rand(1, 3, 8, 8))
