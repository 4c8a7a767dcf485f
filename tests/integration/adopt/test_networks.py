"""Networks that users name, and the weights that fill them."""

import re
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from model import load_artifact
from model.artifact import PRETRAINED, ArtifactError
from training.adopt.errors import NetworkError
from training.adopt.networks import load_members, load_network

CODE = """
from torch import nn


def make(width=3, dropout=0.5):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 2))


network = make(5)
number = 3


def text():
    return "network"


def again():
    return network


def ends():
    raise SystemExit


def fails():
    raise RuntimeError("first line\\nsecond line")
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """A module in the current folder."""
    name = "somebodys_networks"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    sys.modules.pop(name, None)
    return name


def refused(message: str, *arguments: object, **options: object) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        load_network(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_a_function_of_the_current_folder_makes_it(module):
    network = load_network(f"{module}:make", '{"width": 7}')
    assert network[1].out_features == 7
    assert not network.training


def test_a_network_itself_is_taken(module):
    assert load_network(f"{module}:network")[1].out_features == 5
    refused("takes no --arguments", f"{module}:network", '{"width": 7}')


@pytest.mark.parametrize(
    ("reference", "arguments", "message"),
    [
        ("no_colon", "{}", r"package.module:factory, .* \*\.pt2, or as the folder of an artifact, got no_colon"),
        ("nowhere_to_be_found:make", "{}", "nowhere_to_be_found can't be imported"),
        ("somebodys_networks:absent", "{}", "somebodys_networks defines no absent"),
        ("somebodys_networks:number", "{}", "must be a function that returns a torch.nn.Module, got int"),
        ("somebodys_networks:text", "{}", "must return a torch.nn.Module, got str"),
        ("somebodys_networks:fails", "{}", "failed: RuntimeError: first line$"),
        ("somebodys_networks:ends", "{}", "failed: it calls sys.exit"),
        ("somebodys_networks:make", "{", "--arguments must be a JSON object, got {"),
        ("somebodys_networks:make", "[1]", r"--arguments must be a JSON object, got \[1\]"),
        ("somebodys_networks:make", '{"depth": 1}', "failed: TypeError: .*depth"),
    ],
)
def test_what_makes_no_network_is_refused(module, reference, arguments, message):
    refused(message, reference, arguments)


def test_exported_networks_and_artifacts_have_their_weights(tmp_path):
    assert load_network(str(PRETRAINED)).classes == load_artifact().classes
    refused("an artifact, .* leave out --weights and --arguments", str(PRETRAINED), '{"width": 7}', tmp_path / "w.pt")
    refused("an exported network, .* leave out --weights", "absent.pt2", weights=tmp_path / "w.pt")
    refused(r"no card\.json in it: expected the folder of an artifact", str(tmp_path))
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"card\.json"):
        load_network(str(tmp_path))


def test_a_program_is_not_run_to_its_end(module, tmp_path):
    (tmp_path / f"{module}.py").write_text("import sys\nsys.exit()\n")
    refused("can't be imported: it calls sys.exit; what a program does belongs under", f"{module}:make")


@pytest.fixture
def state(module) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return load_network(f"{module}:make").state_dict()


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_weights_fill_the_network(module, state, tmp_path, key):
    torch.save({key: state} if key else state, tmp_path / "weights.pt")
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    for file in ("weights.pt", "weights.safetensors"):
        found = load_network(f"{module}:make", weights=tmp_path / file).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_weights_of_data_parallel_fill_the_network(module, state, tmp_path):
    parallel = nn.DataParallel(load_network(f"{module}:make"))
    parallel.module.load_state_dict(state)
    torch.save(parallel.state_dict(), tmp_path / "weights.pt")
    found = load_network(f"{module}:make", weights=tmp_path / "weights.pt").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("1.bias"), r"1\.bias missing, none unexpected"),
        (lambda state: state.update(extra=torch.ones(2)), "none missing, extra unexpected"),
        (lambda state: state.update({"1.bias": torch.ones(9)}), r"1\.bias \[9\] instead of \[3\]"),
        (lambda state: state.update({"1.bias": torch.full((3,), torch.nan)}), r"not finite in 1\.bias"),
    ],
)
def test_other_weights_are_refused_with_names(module, state, tmp_path, change, message):
    change(state)
    torch.save(dict(state), tmp_path / "weights.pt")
    refused(message, f"{module}:make", weights=tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", b"no weights", "got a file of another kind, or damaged: save it"),
        ("w.pt", b"", "got a file of another kind, or damaged: save it"),
        ("w.pt", b"PK\3\4 no archive", "got a file of another kind, or damaged: save it"),
        ("w.safetensors", b"no weights", "expected safetensors or a state dict"),
        ("absent.pt", None, "expected a readable file, got No such file"),
    ],
)
def test_files_without_weights_are_refused(module, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused(re.escape(name) + ".*" + message, f"{module}:make", weights=tmp_path / name)


def test_a_pickled_network_is_never_run(module, tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "network.pt")
    refused("got more than tensors in it: save it with", f"{module}:make", weights=tmp_path / "network.pt")


def test_members_are_made_by_the_same_callable_with_other_weights(module, tmp_path):
    paths = [tmp_path / f"{seed}.pt" for seed in range(3)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        torch.save(load_network(f"{module}:make", '{"width": 6}').state_dict(), path)
    members = load_members(f"{module}:make", '{"width": 6}', paths[0], paths[1:])
    assert [type(member) for member in members] == [nn.Sequential] * 3
    for member, path in zip(members, paths, strict=True):
        assert torch.equal(member[1].weight, torch.load(path)["1.weight"])
    assert load_members(f"{module}:make", "{}", None, [])[0][1].out_features == 3
    artifact, network = load_members(str(PRETRAINED), "{}", None, [PRETRAINED])
    assert artifact.sha256 == network.sha256


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{module}:network", "--member {path}: {module}:network must be a function that returns a new network each"),
        ("{module}:again", "--member {path}: {module}:again must be a function that returns a new network each time"),
        (str(PRETRAINED), "can't be made again with other weights: give an exported network or an artifact"),
        ("{module}:make", "{path}: the weights don't fit the network"),
    ],
)
def test_members_that_are_no_other_network_are_refused(module, tmp_path, reference, message):
    path = tmp_path / "member.pt"
    torch.save(load_network(f"{module}:network").state_dict(), path)
    with pytest.raises(NetworkError, match=re.escape(message.format(module=module, path=path))):
        load_members(reference.format(module=module), "{}", None, [path])
