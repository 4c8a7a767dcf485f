import hashlib
import json
import math
import os
import pickle
import re
import shutil
import stat
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from model import (
    ArtifactError,
    MLPConfig,
    MomentPropagation,
    MonteCarloDropout,
    build_mlp,
    load_artifact,
    save_artifact,
    save_compiled,
)
from model.artifact import CARD, FAILURES, POINTS, WEIGHTS, add_to_card, write_atomically
from model.calibration import COVERAGES, RISKS, Calibration
from model.graph import MAIN, PREFIX
from model.input_spec import InputSpec
from model.network import compile_to_files

CONFIG = MLPConfig(image=(1, 4, 4), hidden=(6, 5), dropout=(0.1, 0.3), classes=3)
PLAIN = replace(CONFIG, dropout=(0.0, 0.0))  # nothing is compiled
CLASSES = ["a", "b", "c"]


@pytest.fixture
def network():
    torch.manual_seed(31)
    return build_mlp(CONFIG)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    torch.manual_seed(31)
    folder = tmp_path_factory.mktemp("saved") / "new" / "artifact"
    save_artifact(folder, build_mlp(CONFIG), CONFIG, {"classes": CLASSES, "seed": 7})
    return folder


@pytest.fixture
def folder(tmp_path, saved) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "artifact"))


@pytest.fixture
def first_format(folder) -> Path:
    """The same network as format 1 had it."""

    def change(card: dict) -> None:
        card["format"] = 1
        del card["graph"], card["quadrature"]

    change_card(folder, change)
    (folder / MAIN).unlink()
    (folder / POINTS).unlink()
    return folder


def change_card(folder: Path, change) -> None:
    card = json.loads((folder / CARD).read_text())
    change(card)
    (folder / CARD).write_text(json.dumps(card))


def replace_weights(folder: Path, data: bytes) -> None:
    """Other weights that the card vouches for."""
    (folder / WEIGHTS).write_bytes(data)
    change_card(folder, lambda card: card["weights"].update(sha256=hashlib.sha256(data).hexdigest()))


def assert_refused(folder: Path, file: str, message: str) -> None:
    """Refused in one line that names the file."""
    with pytest.raises(ArtifactError, match=f"^{re.escape(str(folder / file))}: {message}$"):
        load_artifact(folder)


def test_load_returns_the_saved_artifact(folder, network):
    artifact = load_artifact(folder)
    images_B = torch.rand(4, 1, 4, 4)
    assert torch.equal(artifact.network(images_B), network.eval()(images_B))
    assert artifact.classes == ("a", "b", "c")
    assert artifact.card["seed"] == 7
    assert artifact.card["architecture"] == {
        "image": [1, 4, 4], "hidden": [6, 5], "dropout": [0.1, 0.3], "classes": 3,
    }  # fmt: skip
    assert artifact.sha256 == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def test_the_network_comes_in_eval_mode_without_gradients(folder):
    network = load_artifact(str(folder)).network
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_every_bit_of_the_tensors_survives(folder, network):
    loaded = load_artifact(folder).network.state_dict()
    assert loaded.keys() == network.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())


FAILURE = {"text": "Sometimes wrong:", "images": ["a, predicted b", "b, predicted a"]}


def test_failures_are_added_to_a_saved_artifact(folder, network):
    saved = load_artifact(folder)
    assert saved.failures is None
    add_to_card(folder, {"intended_use": "A test."}, failures=[FAILURE], pictures=b"PNG")
    added = load_artifact(folder)
    assert added.failures == b"PNG"
    assert added.card["failures"]["kinds"] == [FAILURE]
    others = {name: value for name, value in added.card.items() if name != "failures"}
    assert others == saved.card | {"intended_use": "A test."}
    save_artifact(folder, network, CONFIG, {"classes": CLASSES})
    assert load_artifact(folder).failures is None
    assert not (folder / FAILURES).exists()


def test_failures_may_have_no_pictures(folder):
    add_to_card(folder, {}, failures=[FAILURE | {"images": []}])
    assert load_artifact(folder).failures is None
    assert not (folder / FAILURES).exists()


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ([], "expected an entry failures.kinds, got none"),
        ({"kinds": {}}, "failures.kinds: expected a text and captions of images in each"),
        ({"kinds": [3]}, "failures.kinds: expected a text and captions of images in each"),
        ({"kinds": [{"text": "x"}]}, "failures.kinds: expected a text and captions of images in each"),
        ({"kinds": [{"text": 1, "images": []}]}, "failures.kinds: expected a text and captions of images in each"),
        ({"kinds": [{"text": "x", "images": [1]}]}, "failures.kinds: expected a text and captions of images in each"),
        ({"kinds": [FAILURE]}, "expected an entry failures.sha256, got none"),
    ],
)
def test_failures_of_another_form_are_refused(folder, failures, message):
    change_card(folder, lambda card: card.update(failures=failures))
    assert_refused(folder, CARD, message)


def test_other_pictures_of_failures_are_refused(folder):
    add_to_card(folder, {}, failures=[FAILURE], pictures=b"PNG")
    (folder / FAILURES).write_bytes(b"GIF")
    assert_refused(folder, FAILURES, r"expected sha256 \w{64}, got \w{64}")
    (folder / FAILURES).unlink()
    assert_refused(folder, FAILURES, "expected a readable file, got No such file or directory")


def test_save_is_deterministic_and_keeps_the_network(tmp_path, folder, network):
    network.train()
    card = save_artifact(tmp_path / "again", network, CONFIG, {"classes": CLASSES, "seed": 7})
    assert json.loads(json.dumps(card)) == json.loads((folder / CARD).read_text())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [CARD, MAIN, POINTS, WEIGHTS]
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    for file in (CARD, MAIN, POINTS, WEIGHTS):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_a_card_cant_contradict_the_network_it_is_saved_with(tmp_path, network):
    """Such as that of another artifact, given as the rest of what there is to tell."""
    foreign = {"classes": CLASSES, "format": 9, "architecture": {"hidden": [1]}, "weights": {"sha256": "0"}}
    try:
        save_artifact(tmp_path, network, PLAIN, foreign)
    except ValueError:
        assert not list(tmp_path.iterdir())
    else:
        assert torch.equal(load_artifact(tmp_path).network.logits.bias, network.logits.bias)


@pytest.mark.parametrize("card", [{}, {"classes": ["a", "b"]}])
def test_save_refuses_a_wrong_number_of_class_names(tmp_path, network, card):
    with pytest.raises(ValueError, match="classes"):
        save_artifact(tmp_path / "x", network, CONFIG, card)
    assert not (tmp_path / "x").exists()


def test_loading_draws_no_random_numbers(folder):
    before = torch.get_rng_state()
    load_artifact(folder)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("position", [0, 100, -1])
def test_load_refuses_a_flipped_byte(folder, position):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[position] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    assert_refused(folder, WEIGHTS, r"expected sha256 \w{64}, got \w{64}")


@pytest.mark.parametrize("file", [CARD, WEIGHTS, MAIN, POINTS])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    assert_refused(folder, file, "expected a readable file, got No such file or directory")


@pytest.mark.parametrize("file", [CARD, WEIGHTS, MAIN, POINTS])
def test_a_folder_in_place_of_a_file_is_named(folder, file):
    (folder / file).unlink()
    (folder / file).mkdir()
    assert_refused(folder, file, "expected a readable file, got Is a directory")


def test_a_file_in_place_of_the_folder_is_named(folder):
    assert_refused(folder / WEIGHTS, CARD, "expected a readable file, got Not a directory")


def test_load_refuses_a_card_that_is_not_text(folder):
    (folder / CARD).write_bytes(b'{"format": "\xff\xfe"}')
    assert_refused(folder, CARD, "expected JSON, got .*")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON, got .*"),
        ("null", "expected a JSON object, got NoneType"),
        pytest.param("[" * 100_000, "expected JSON, got .*", id="deeply nested"),
        ("{", "expected JSON, got .*"),
        ("\x00", "expected JSON, got .*"),
        ("[]", "expected a JSON object, got list"),
        ("{}", "format: expected 1 or 2, got None"),
        ('{"format": 3}', "format: expected 1 or 2, got 3"),
    ],
)
def test_load_refuses_an_invalid_card(folder, text, message):
    (folder / CARD).write_text(text)
    assert_refused(folder, CARD, message)


@pytest.mark.parametrize(
    "keys",
    [["architecture"], ["architecture", "image"], ["architecture", "hidden"], ["architecture", "dropout"],
     ["architecture", "classes"], ["classes"], ["weights"], ["weights", "sha256"]],
)  # fmt: skip
def test_a_missing_entry_is_named(folder, keys):
    def remove(card: dict) -> None:
        for key in keys[:-1]:
            card = card[key]
        del card[keys[-1]]

    change_card(folder, remove)
    assert_refused(folder, CARD, rf"expected an entry {re.escape('.'.join(keys))}(\.\w+)?, got none")


@pytest.mark.parametrize(
    "change",
    [{"hidden": "many"}, {"hidden": 5}, {"hidden": [6, -5]}, {"hidden": [6, "5"]}, {"dropout": [0.1, 2]},
     {"dropout": [0.1]}, {"dropout": None}, {"classes": None}, {"image": [1, 4.5, 4]}, {"hidden": [0, 5]},
     {"hidden": [[6], 5]}, {"hidden": {"6": 5}}, {"dropout": ["0.1", 0.3]}, {"dropout": [float("nan"), 0.3]},
     {"hidden": [True, 5]}],
)  # fmt: skip
def test_load_refuses_an_invalid_architecture(folder, change):
    change_card(folder, lambda card: card["architecture"].update(change))
    assert_refused(folder, CARD, r"architecture: expected sizes and probabilities, got \{.*\} \(.*\)")


@pytest.mark.parametrize("section", ["architecture", "weights"])
@pytest.mark.parametrize("value", [None, 3, "text", []])
def test_a_section_that_is_not_an_object_has_no_entries(folder, section, value):
    change_card(folder, lambda card: card.update({section: value}))
    assert_refused(folder, CARD, rf"expected an entry {section}\.\w+, got none")


@pytest.mark.parametrize("classes", [["a", "b"], ["a", "b", "c", "d"], "abc", [1, 2, 3], None])
def test_classes_must_be_as_many_names_as_outputs(folder, classes):
    change_card(folder, lambda card: card.update(classes=classes))
    assert_refused(folder, CARD, "classes: expected 3 names, got .*")


def test_an_enormous_architecture_costs_no_memory_before_it_is_refused(folder):
    change_card(folder, lambda card: card["architecture"].update(hidden=[10**7, 10**7]))
    assert_refused(folder, WEIGHTS, r"tensor hidden1\.bias: expected float32\[10000000\], got float32\[6\]")


@pytest.mark.parametrize("size", [10**12, 2**62, 2**63, 10**30])
def test_an_architecture_beyond_all_addresses_is_refused_too(folder, size):
    change_card(folder, lambda card: card["architecture"].update(hidden=[size, size]))
    with pytest.raises(ArtifactError, match=f"^{re.escape(str(folder))}/.*: .*expected .*, got .*$") as refusal:
        load_artifact(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("logits.bias"), r"tensor logits\.bias: expected float32\[3\], got none"),
        (lambda state: state.update(extra=torch.ones(2)), r"tensor extra: expected none, got float32\[2\]"),
        (
            lambda state: state.update({"hidden1.bias": torch.ones(7)}),
            r"tensor hidden1\.bias: expected float32\[6\], got float32\[7\]",
        ),
        (
            lambda state: state.update({"hidden1.bias": torch.ones(6).half()}),
            r"tensor hidden1\.bias: expected float32\[6\], got float16\[6\]",
        ),
        (
            lambda state: state.update({"hidden1.weight": torch.ones(16, 6)}),
            r"tensor hidden1\.weight: expected float32\[6, 16\], got float32\[16, 6\]",
        ),
        (lambda state: state.clear(), r"tensor hidden1\.bias: expected float32\[6\], got none"),
    ],
)
def test_tensors_other_than_the_architectures_are_refused(folder, change, message):
    state = safetensors.torch.load_file(folder / WEIGHTS)
    change(state)
    replace_weights(folder, safetensors.torch.save(state))
    assert_refused(folder, WEIGHTS, message)


def test_a_dtype_that_torch_doesnt_know_is_refused(folder):
    """safetensors has more of them than its own reader for torch."""
    header = json.dumps({"logits.bias": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    replace_weights(folder, struct.pack("<Q", len(header)) + header + b"\0")
    assert_refused(folder, WEIGHTS, "expected safetensors, got .*")


def test_tensor_error_is_one_line_for_any_tensor_name(folder):
    state = safetensors.torch.load_file(folder / WEIGHTS)
    replace_weights(folder, safetensors.torch.save({**state, "a\nb\x1b[2J": torch.ones(2)}))
    with pytest.raises(ArtifactError, match=r"tensor .*: expected none, got float32\[2\]") as refusal:
        load_artifact(folder)
    assert str(refusal.value).isprintable()


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_refused_and_never_run(folder, tmp_path):
    replace_weights(folder, pickle.dumps(Trap(tmp_path / "sprung")))
    assert_refused(folder, WEIGHTS, r"expected safetensors, got a file that can't be read \(.*\)")
    assert not (tmp_path / "sprung").exists()
    pickle.loads((folder / WEIGHTS).read_bytes())  # noqa: S301 - shows that the trap would have worked
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("size", [0, 7, 200, -1])
def test_load_refuses_a_truncated_file_with_matching_hash(folder, size):
    replace_weights(folder, (folder / WEIGHTS).read_bytes()[:size])
    assert_refused(folder, WEIGHTS, "expected safetensors, got .*")


def test_save_refuses_a_network_of_another_shape(tmp_path, network):
    with pytest.raises(ArtifactError, match=r"tensor hidden2\.bias: expected float32\[9\], got float32\[5\]"):
        save_artifact(tmp_path / "x", network, MLPConfig(image=(1, 4, 4), hidden=(6, 9), classes=3), {})
    assert not (tmp_path / "x").exists()


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("where", "what"), [(os, "fsync"), (Path, "replace")])
@pytest.mark.parametrize("before", [b"old", None])
def test_interrupted_write_keeps_the_old_file_only(tmp_path, monkeypatch, where, what, before):
    path = tmp_path / "file"
    if before is not None:
        write_atomically(path, before)
    monkeypatch.setattr(where, what, no_space)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == ({path: before} if before else {})


def test_a_write_replaces_the_whole_file(tmp_path):
    for data in (b"a long one", b"short", b""):
        write_atomically(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_data_is_synced_before_the_file_is_renamed(tmp_path, monkeypatch):
    """The data are synced, the file is renamed, the folder that holds the name is synced."""
    steps = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(number: int) -> None:
        status = os.fstat(number)
        steps.append("folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes")
        fsync(number)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", lambda self, to: (steps.append("rename"), replace(self, to)))
    write_atomically(tmp_path / "file", b"data")
    assert steps == ["4 bytes", "rename", "folder"]


def test_load_refuses_a_partly_saved_artifact(folder, monkeypatch):
    """New weights beside an old card."""
    monkeypatch.setattr("model.artifact.CARD", "missing/card.json")
    with pytest.raises(FileNotFoundError):
        save_artifact(folder, build_mlp(CONFIG), PLAIN, {"classes": CLASSES})
    monkeypatch.undo()
    assert_refused(folder, WEIGHTS, r"expected sha256 \w{64}, got \w{64}")


def test_the_embedded_default_loads_and_says_how_it_was_made():
    artifact = load_artifact()
    assert artifact.card["command"].startswith("python -m training.train")
    assert artifact.network(torch.zeros(2, 1, 28, 28)).shape == (2, len(artifact.classes))


def test_graph_and_live_network_give_the_same(folder, network):
    artifact, images_B = load_artifact(folder), torch.rand(4, 1, 4, 4)
    masked = MonteCarloDropout(network).sample(images_B, samples=40, seed=3).numpy()
    assert np.allclose(artifact.engine.sample(images_B.numpy(), 40, 3), masked, atol=1e-6)
    moments = MomentPropagation(network).predict(images_B)
    propagated = artifact.moments.predict(images_B.numpy())
    assert np.allclose(propagated.covariance, moments.covariance, atol=1e-9)


def test_format_1_gives_the_same_answers(saved, first_format):
    new, old, images_B = load_artifact(saved), load_artifact(first_format), torch.rand(3, 1, 4, 4).numpy()
    assert old.card["format"] == 1
    assert old.sha256 == new.sha256
    assert np.array_equal(old.engine.sample(images_B, 20, 3), new.engine.sample(images_B, 20, 3))
    for name in ("mean", "covariance"):
        of_old, of_new = (getattr(one.moments.predict(images_B), name) for one in (old, new))
        assert np.array_equal(of_old, of_new)


@pytest.mark.parametrize("file", [MAIN, POINTS])
def test_every_file_is_held_against_its_hash(folder, file):
    (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    assert_refused(folder, file, r"expected sha256 \w{64}, got \w{64}")


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x08\x0a"])
def test_a_file_that_is_no_graph_is_refused(folder, data):
    (folder / MAIN).write_bytes(data)
    change_card(folder, lambda card: card["graph"]["files"].update({MAIN: hashlib.sha256(data).hexdigest()}))
    assert_refused(folder, MAIN, ".*ONNX Runtime can't read it.*")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: graph.pop("dropout"), "graph: expected a description of a graph, got one with a bad 'dropout'"),
        (lambda graph: graph.update(dropout=[]), "graph: expected at least one use of dropout.*"),
        (lambda graph: graph["dropout"][0].update(p=0.2), r"graph\.dropout: expected \[0\.1, 0\.3\] .*"),
        (lambda graph: graph.update(image=[1, 4, 5]), r"graph\.image: expected \[1, 4, 4\] .*"),
        (lambda graph: graph.update(mask_bytes=0), "graph: expected a size of at least 1, got 0"),
        (lambda graph: graph.update(files={"../network.onnx": "0"}), r"graph\.files: expected network\.onnx.*"),
        (lambda graph: graph.pop("known_answers"), r"expected an entry graph\.known_answers, got none"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(folder, change, message):
    change_card(folder, lambda card: change(card["graph"]))
    assert_refused(folder, CARD, message)


def test_masks_of_another_shape_are_refused(folder):
    change_card(folder, lambda card: card["graph"]["dropout"][0].update(shape=[9]))
    assert_refused(folder, MAIN, r".*input mask_0: expected float .*9.*, got tensor\(float\) .*6.*")


@pytest.mark.parametrize("name", ["eval", "masks"])
def test_another_answer_to_the_known_image_is_refused(folder, name):
    def change(card: dict) -> None:
        answers = np.array(card["graph"]["known_answers"][name])
        card["graph"]["known_answers"][name] = (answers + 0.01 * np.abs(answers).max()).tolist()

    change_card(folder, change)
    assert_refused(folder, MAIN, rf"expected the known answer of the card, got another \({name}\)")


def test_a_network_without_dropout_has_no_graph(tmp_path):
    config = replace(CONFIG, dropout=(0, 0))
    save_artifact(tmp_path, build_mlp(config), config, {"classes": CLASSES})
    artifact = load_artifact(tmp_path)
    assert artifact.chain is artifact.moments is None
    with pytest.raises(ArtifactError, match="no active dropout"):
        artifact.engine  # noqa: B018 - raises


def test_artifact_is_copied_without_its_sessions(folder):
    artifact = load_artifact(folder)
    images_B = np.zeros((1, 1, 4, 4), np.float32)
    expected = artifact.engine.predict(images_B)
    assert np.array_equal(pickle.loads(pickle.dumps(artifact)).engine.predict(images_B), expected)  # noqa: S301


def test_a_compiled_network_of_any_architecture_is_saved(tmp_path):
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2)]
    compiled = compile_to_files(nn.Sequential(*layers), torch.rand(3, 8, 8))
    with pytest.raises(ArtifactError, match="classes: expected 2 names, got 3"):
        save_compiled(tmp_path, compiled, {"classes": 3})
    save_compiled(tmp_path, compiled, {"classes": ["cat", "dog"], "seed": 1})
    artifact, images_B = load_artifact(tmp_path), torch.rand(2, 3, 8, 8).numpy()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CARD, *compiled.files])
    assert PREFIX in compiled.files
    assert (artifact.classes, artifact.card["seed"]) == (("cat", "dog"), 1)
    assert np.array_equal(artifact.engine.sample(images_B, 20), compiled.graph().sample(images_B, 20))
    assert artifact.chain is artifact.moments is None
    with pytest.raises(ArtifactError, match="a graph only"):
        artifact.network  # noqa: B018 - raises


def test_all_that_decides_answers_identifies_a_compiled_network(tmp_path):
    compiled = compile_to_files(nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(12, 2)), torch.rand(3, 2, 2))
    spec = InputSpec(channels=3, height=2, width=2, mean=(0.0,) * 3, std=(1.0,) * 3, resize="crop")
    scores, confidences = dict.fromkeys(("lac", "aps"), dict.fromkeys(COVERAGES, 0.5)), dict.fromkeys(RISKS, 0.9)
    fitted = {"estimator": "masks", "samples": 10, "confidences": confidences, "reference": {}}
    by_class = scores | {"mondrian": dict.fromkeys(COVERAGES, (0.5, None))}

    def identity(
        classes: str = "ab", temperature: float = 1, *, input_spec: InputSpec = spec, seed: int = 1, sets: dict = scores
    ) -> str:
        save_compiled(
            tmp_path, compiled, {"classes": list(classes), "seed": seed}, input_spec=input_spec,
            calibrations=[Calibration(temperature=temperature, set_scores=sets, **fitted)],
        )  # fmt: skip
        return load_artifact(tmp_path).sha256

    found = identity()
    assert re.fullmatch("[0-9a-f]{64}", found)
    assert identity(seed=2) == found
    others = {
        identity("ba"), identity(temperature=2), identity(input_spec=replace(spec, resize="fit")),
        identity(sets=by_class),
    }  # fmt: skip
    assert len(others | {found}) == 5
    with pytest.raises(ArtifactError, match="calibrations: mondrian: expected 2 thresholds, got 3"):
        identity(sets=scores | {"mondrian": dict.fromkeys(COVERAGES, (0.5,) * 3)})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, network, value):
    with torch.no_grad():
        network.hidden1.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"hidden1\.weight has values that are not finite"):
        save_artifact(tmp_path / "x", network, CONFIG, {"classes": CLASSES})
    assert not (tmp_path / "x").exists()
