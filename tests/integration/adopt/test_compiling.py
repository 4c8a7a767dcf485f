"""Where the compiled network comes from: a module, a module into which dropout is inserted, or an artifact."""

import numpy as np
import pytest
import rgb
import torch
from torch import nn

from model import load_artifact
from model.network.live import LiveNetwork
from model.network.tracing import CompileError, error_line
from training.adopt.compiling import compile_source
from training.adopt.errors import NetworkError
from training.adopt.exported import from_program
from training.adopt.injection import inject_dropout

IMAGE_1 = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(80))


def layers(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(81)
    hidden, head = nn.Linear(16, 12), nn.Linear(12, 3)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), *between, head).eval()


@pytest.mark.parametrize("is_exported", [False, True])
def test_dropout_is_inserted_before_the_last_linear_layer(is_exported):
    network = layers()
    if is_exported:
        network = from_program(torch.export.export(network, (IMAGE_1,)), "network")
    assert inject_dropout(network, IMAGE_1, 0.3) == "3"
    masks = (range(30), 4, "stratified")
    inserted, written = LiveNetwork(network), LiveNetwork(layers(nn.Dropout(0.3)))
    with torch.no_grad():
        assert torch.allclose(inserted.predict(IMAGE_1), written.predict(IMAGE_1), atol=1e-6)
        assert torch.allclose(inserted.sample(IMAGE_1, masks), written.sample(IMAGE_1, masks), atol=1e-6)


class Deciding(nn.Module):
    """Control flow that depends on the values."""

    def forward(self, images_B):
        logits_BC = nn.functional.dropout(images_B.flatten(1), 0.5, self.training)
        return logits_BC if logits_BC.sum() > 0 else -logits_BC


def test_what_torch_prints_is_dropped(capfd):
    with pytest.raises(CompileError, match="control flow must not depend on the values"):
        compile_source(Deciding(), IMAGE_1.numpy(), None)
    assert capfd.readouterr() == ("", "")


def test_an_error_line_has_no_colours():
    assert error_line(ValueError("a \x1b[1mbold\x1b[0;31m word\nsecond line")) == "ValueError: a bold word"


class Named(nn.Module):
    """A linear layer whose input is named."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(83)
        self.between, self.linear = between, nn.Linear(16, 3)

    def forward(self, images_B):
        return self.linear(input=self.between(images_B.flatten(1)))


def test_dropout_is_inserted_before_a_layer_whose_input_is_named():
    network, masks = Named(nn.Identity()).eval(), (range(20), 4, "stratified")
    assert inject_dropout(network, IMAGE_1, 0.3) == "linear"
    inserted, written = LiveNetwork(network), LiveNetwork(Named(nn.Dropout(0.3)).eval())
    with torch.no_grad():
        assert torch.allclose(inserted.sample(IMAGE_1, masks), written.sample(IMAGE_1, masks), atol=1e-6)


class Twice(nn.Module):
    """A linear layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, images_B):
        return self.linear(self.linear(images_B.flatten(1)))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()), "returns what its last nn.Linear returns"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU()), "returns what its last nn.Linear returns"),
        (Twice(), "the last linear layer linear is used more than once"),
    ],
)
def test_networks_without_a_last_linear_layer_are_refused(network, message):
    with pytest.raises(NetworkError, match=message):
        inject_dropout(network, IMAGE_1, 0.3)


def test_inserting_is_asked_for_where_it_is_needed_and_noted():
    image_1 = IMAGE_1.numpy()
    with pytest.raises(NetworkError, match=r"no dropout is reached .*--inject-dropout 0\.1 inserts it"):
        compile_source(layers(), image_1, None)
    with pytest.raises(NetworkError, match="is for networks without dropout, and this one has it at 3: leave it out"):
        compile_source(layers(nn.Dropout(0.5)), image_1, 0.3)
    with pytest.raises(NetworkError, match="dropout of p 1 drops all that it gets, at 4: give it a p below 1"):
        compile_source(layers(nn.Dropout(0.5), nn.Dropout(1.0)), image_1, None)
    source = compile_source(layers(), image_1, 0.3)
    assert source.entries["injected_dropout"] == {"p": 0.3, "before": "3"}
    assert [(site.p, site.shape) for site in source.compiled.spec.sites] == [(0.3, (12,))]
    assert source.compiled.chain is not None


def test_the_graph_of_an_artifact_stays_as_it_is(tmp_path):
    artifact = load_artifact(rgb.save(tmp_path))
    source = compile_source(artifact, np.ones((1, *rgb.SPEC.shape), np.float32), None)
    assert (source.compiled.spec, source.compiled.files) == (artifact.spec, artifact.files)
    with pytest.raises(NetworkError, match=r"takes images of 3 x 20 x 24 .* leave out --size and --channels"):
        compile_source(artifact, np.ones((1, 3, 20, 20), np.float32), None)
    with pytest.raises(NetworkError, match="--inject-dropout is for networks without dropout"):
        compile_source(artifact, np.ones((1, *rgb.SPEC.shape), np.float32), 0.5)


def test_the_network_of_an_artifact_of_ours_keeps_its_layers_for_moments():
    artifact = load_artifact()
    compiled = compile_source(artifact, np.ones((1, 1, 28, 28), np.float32), None).compiled
    images_B = np.random.default_rng(82).random((5, 1, 28, 28), np.float32)
    assert np.allclose(compiled.graph().predict(images_B), artifact.engine.predict(images_B), atol=1e-6)
    assert compiled.chain is not None
