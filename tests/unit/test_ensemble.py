"""Ensembles: the members' own passes in the order of samples, their averages, and what is refused."""

import copy
import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
import torch
from scipy import stats
from torch import nn
from zoo import make

from model import Graph, MonteCarloDropout, summarize
from model.graph import GraphSpec
from model.masks import member_samples
from model.network import Compiled, CompileError, compile_ensemble, compile_to_files, join_networks

DESIGNS = ["stratified", "independent"]
MEMBERS = 3  # does not divide a block of ten


def networks(name: str, count: int) -> list[nn.Module]:
    """Networks of one architecture with other weights."""
    made = []
    for seed in range(count):
        network = copy.deepcopy(make(name))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        made.append(network)
    return made


def compiled(name: str, split_flops: int) -> list[Compiled]:
    """A compiled network, and others that differ from it in their weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.network.tracing._SPLIT_FLOPS", split_flops)
        first = compile_to_files(make(name), np.ones((1, 8, 8), np.float32))
    return [first, *(dataclasses.replace(first, files=other_weights(first.files, seed)) for seed in range(1, MEMBERS))]


def other_weights(files: Mapping[str, bytes], seed: int) -> dict[str, bytes]:
    changed = {}
    for name, content in files.items():
        model, rng = onnx.load_model_from_string(content), np.random.default_rng(seed)
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.ndim and array.dtype == np.float32:
                noise = rng.normal(scale=0.3, size=array.shape).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array + noise, tensor.name))
        changed[name] = model.SerializeToString()
    return changed


@pytest.fixture(scope="module")
def kinds() -> dict[str, list[Compiled]]:
    """Of several images at once, in one file and in two; and of one image at a time, in two."""
    return {"together": compiled("lenet", 10**6), "split": compiled("lenet", 0), "one image": compiled("mlp", 0)}


@pytest.fixture(params=["together", "split", "one image"])
def members(request, kinds) -> list[Compiled]:
    return kinds[request.param]


@pytest.fixture
def parts(members) -> Compiled:
    return join_networks(members)


def alone(members: list[Compiled]) -> list[Graph]:
    """The members' own graphs, with the masks that they get in an ensemble."""
    sites = len(members[0].spec.sites)
    return [Graph(one.spec, one.files, first_site=place * sites) for place, one in enumerate(members)]


def images(count: int = 5) -> np.ndarray:
    return np.random.default_rng(41).random((count, 1, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_samples_are_divided_in_turn(members):
    for start in range(7):
        for stop in range(start, 15):
            samples = range(start, stop)
            for member in range(members):
                expected = [s // members for s in samples if s % members == member]
                assert list(member_samples(samples, member, members)) == expected


@pytest.mark.parametrize("masks", DESIGNS)
@pytest.mark.parametrize("samples", [2, 3, 10, 47])
def test_each_sample_is_a_pass_of_its_member_alone(members, parts, samples, masks):
    images_B = images()
    found_SBC = parts.graph().sample(images_B, samples, 5, masks=masks)
    for place, graph in enumerate(alone(members)):
        expected_SBC = graph.sample(images_B, max(len(found_SBC[place::MEMBERS]), 2), 5, masks=masks)
        assert np.array_equal(found_SBC[place::MEMBERS], expected_SBC[: len(found_SBC[place::MEMBERS])])


def test_members_have_masks_of_their_own(members):
    """The same network twice: its passes differ, so that their errors are independent."""
    graph = join_networks([members[0]] * 2).graph()
    found_SBC = graph.sample(images(), 20)
    assert not np.allclose(found_SBC[::2], found_SBC[1::2], atol=1e-3)
    assert np.array_equal(found_SBC[::2], members[0].graph().sample(images(), 10))


def test_eval_mode_averages_the_members_probabilities(members, parts):
    images_B, graph = images(), parts.graph()
    expected_BC = np.mean([one.graph().predict(images_B).astype(np.float64) for one in members], axis=0)
    assert np.abs(graph.predict(images_B) - expected_BC).max() < 1e-7
    assert np.abs(stats.entropy(expected_BC, axis=1) - stats.entropy(graph.predict(images_B), axis=1)).max() < 1e-6
    logits_1BC = torch.from_numpy(graph.logits(images_B))
    assert logits_1BC.shape == (1, 5, 4)
    assert np.abs(logits_1BC.exp().numpy()[0] - expected_BC).max() < 1e-6
    probs_BC, features_BF = graph.predict_with_features(images_B)
    assert np.array_equal(probs_BC, graph.predict(images_B))
    assert np.array_equal(features_BF, members[0].graph().predict_with_features(images_B)[1])


def test_logits_under_masks_are_those_of_the_passes(parts):
    mask_range = (range(7, 29), 4, "stratified")
    logits_SBC = parts.graph().logits(images(), mask_range)
    expected = parts.graph().sample(images(), 29, 4)[7:]
    assert np.abs(torch.from_numpy(logits_SBC).double().softmax(-1).numpy() - expected).max() < 1e-6


def test_an_image_doesnt_depend_on_its_neighbours(parts):
    images_B, graph = images(33), parts.graph()
    together, predicted = graph.sample(images_B, samples=45, seed=3), graph.predict(images_B)
    with graph.share_prefix():
        assert np.array_equal(graph.sample(images_B, samples=45, seed=3), together)
        assert np.array_equal(graph.predict_with_features(images_B)[0], predicted)
    for first, stop in ((0, 1), (1, 3), (4, 9), (9, 33)):
        assert np.array_equal(graph.sample(images_B[first:stop], samples=45, seed=3), together[:, first:stop])
        assert np.array_equal(graph.predict(images_B[first:stop]), predicted[first:stop])


@pytest.mark.parametrize("masks", DESIGNS)
@pytest.mark.parametrize("together", [1, 2, 7, 10, 44, 45, 90])
def test_division_into_chunks_changes_no_bit(parts, masks, together, monkeypatch):
    expected = parts.graph().sample(images(), samples=45, seed=3, masks=masks)
    for name in ("_CHUNK_BYTES", "_BATCH_BYTES"):
        monkeypatch.setattr(f"model.graph.{name}", together * parts.spec.mask_bytes)
    graph = parts.graph()
    assert graph._chunk % MEMBERS == 0
    assert np.array_equal(graph.sample(images(), samples=45, seed=3, masks=masks), expected)


@pytest.mark.parametrize("masks", DESIGNS)
def test_fewer_masks_are_the_first_of_more(parts, masks):
    images_B, graph = images(), parts.graph()
    whole = graph.sample(images_B, samples=120, seed=9, masks=masks)
    for samples in (2, 3, 20, 99, 119):
        assert np.array_equal(graph.sample(images_B, samples=samples, seed=9, masks=masks), whole[:samples])
    probs_SBC, found = graph.sample_until(images_B, tolerance=1e-9, max_samples=120, seed=9, masks=masks)
    assert np.array_equal(probs_SBC, whole)
    assert np.array_equal(found.mean, graph.estimate(images_B, 120, 9, masks=masks).mean)


def test_no_images_give_no_rows(parts):
    graph, none = parts.graph(), images(0)
    assert graph.predict(none).shape == (0, 4)
    assert graph.sample(none, samples=7).shape == (7, 0, 4)
    assert graph.estimate(none).mean.shape == (0, 4)


def test_live_modules_give_the_same_passes():
    modules = networks("mlp", 2)
    graph, mc = compile_ensemble(modules, np.ones((1, 8, 8), np.float32)), MonteCarloDropout(modules)
    images_B = images()
    assert np.abs(graph.predict(images_B) - mc.predict(images_B).numpy()).max() < 1e-5
    for samples in (2, 25):
        expected_SBC = mc.sample(images_B, samples=samples, seed=6).numpy()
        assert np.abs(graph.sample(images_B, samples, 6) - expected_SBC).max() < 1e-5
    probs_SBC, found = mc.sample_until(images_B, tolerance=1e-9, max_samples=40, seed=6)
    expected = graph.estimate(images_B, 40, 6)
    assert len(probs_SBC) == 40
    assert np.abs(found.standard_error.numpy() - expected.standard_error).max() < 1e-5
    copied = copy.deepcopy(mc)
    assert torch.equal(copied.sample(images_B, samples=4), mc.sample(images_B, samples=4))


def test_gradients_reach_all_live_members():
    modules = [module.requires_grad_() for module in networks("lenet", MEMBERS)]
    MonteCarloDropout(modules).sample(images(2), samples=5, gradients=True)[:, 0, 0].sum().backward()
    assert all(any(one.grad is not None and one.grad.abs().max() > 0 for one in m.parameters()) for m in modules)


def test_other_networks_are_refused(kinds):
    first, other = kinds["together"][0], kinds["one image"][0]
    with pytest.raises(CompileError, match=r"member 2 differs from the first in its dropout, .* of one architecture"):
        join_networks([first, other])
    for change, message in (
        ({"image": (1, 9, 9)}, r"member 2 differs from the first in the shape of images, \[1, 9, 9\] instead of"),
        ({"classes": 5}, "the number of classes, 5 instead of 4"),
        ({"sites": (first.spec.sites[0]._replace(p=0.25), *first.spec.sites[1:])}, "its dropout, .* p 0.25"),
        ({"members": 2}, "member 2 is an ensemble of 2 networks: give these one by one"),
    ):
        with pytest.raises(CompileError, match=message):
            join_networks([first, dataclasses.replace(first, spec=dataclasses.replace(first.spec, **change))])
    with pytest.raises(CompileError, match="needs networks, got none"):
        join_networks([])
    for modules, message in (([], "got none"), ([make("lenet"), make("mlp")], "same dropout")):
        with pytest.raises(ValueError, match=message):
            MonteCarloDropout(modules).sample(images(), samples=2)


def test_a_joint_graph_that_computes_something_else_is_refused(kinds, monkeypatch):
    first, second, third = kinds["together"]
    joined = join_networks([second, first, third]).files
    monkeypatch.setattr("model.network.ensemble._join_files", lambda *_: joined)
    with pytest.raises(CompileError, match="the joint graph differs from its members by 0"):
        join_networks([first, second, third])


def test_one_member_is_a_network_alone(kinds):
    assert join_networks(kinds["together"][:1]) is kinds["together"][0]


def test_the_description_of_one_network_stays_as_it_is(parts, members):
    assert "members" not in members[0].spec.to_json()
    assert parts.spec.to_json()["members"] == MEMBERS
    for spec in (parts.spec, members[0].spec):
        assert GraphSpec.from_json(spec.to_json()) == spec
    for wrong in (0, "3", True):
        with pytest.raises(ValueError, match="expected a size of at least 1"):
            GraphSpec.from_json(parts.spec.to_json() | {"members": wrong})
    with pytest.raises(ValueError, match="expected the inputs"):
        Graph(dataclasses.replace(parts.spec, members=2), parts.files)


def test_an_ensemble_has_no_moments(parts):
    assert parts.chain is None
    assert parts.no_chain == "moments are of one network, and this is an ensemble of 3"


@pytest.mark.parametrize("masks", DESIGNS)
@pytest.mark.parametrize("passes", [9, 20, 47, 60, 100])
def test_the_summary_weighs_members_equally(passes, masks):
    """A second implementation: each member summarized alone."""
    probs_SBC = np.random.default_rng(passes).dirichlet(np.ones(4) / 2, size=(passes, 7))
    found = summarize(probs_SBC, masks=masks, members=MEMBERS)
    alone = [summarize(probs_SBC[place::MEMBERS], masks=masks) for place in range(MEMBERS)]
    mean_MBC = np.stack([one.mean for one in alone])
    assert np.allclose(found.mean, mean_MBC.mean(axis=0))
    weights_S = np.array([1 / (MEMBERS * len(probs_SBC[s % MEMBERS :: MEMBERS])) for s in range(passes)])
    assert np.allclose(found.mean, np.einsum("s,sbc->bc", weights_S, probs_SBC))
    squares_BC = np.einsum("s,sbc->bc", weights_S, (probs_SBC - found.mean) ** 2)
    assert np.allclose(found.variance, squares_BC)
    assert np.allclose(found.expected_entropy, np.einsum("s,sb->b", weights_S, stats.entropy(probs_SBC, axis=2)))
    assert np.allclose(found.predictive_entropy, stats.entropy(found.mean, axis=1))
    bound_BC = np.sqrt(sum(one.standard_error**2 for one in alone)) / MEMBERS
    assert (found.standard_error <= bound_BC * (1 + 1e-9)).all()  # the larger of sums is at most the sum of the larger
    information_B = found.predictive_entropy - found.expected_entropy
    assert (found.mutual_information >= information_B).all()


def test_the_standard_error_leaves_out_the_spread_of_the_members():
    """Members that never disagree with themselves have a mean that more masks don't change."""
    of_members_MBC = np.random.default_rng(2).dirichlet(np.ones(4), size=(MEMBERS, 5))
    found = summarize(np.tile(of_members_MBC, (20, 1, 1)), members=MEMBERS)
    assert np.allclose(found.mean, of_members_MBC.mean(axis=0))
    assert np.allclose(found.variance, of_members_MBC.var(axis=0))
    assert found.standard_error.max() < 1e-8
    assert (found.mutual_information > 0.01).all()
    assert (summarize(np.tile(of_members_MBC, (20, 1, 1))).standard_error > 0.01).any()


def test_few_passes_are_summarized_as_independent_ones():
    probs_SBC = np.random.default_rng(3).dirichlet(np.ones(4), size=(29, 5))
    found, expected = summarize(probs_SBC, members=10), summarize(probs_SBC, masks="independent")
    assert all(np.array_equal(one, vars(expected)[name]) for name, one in vars(found).items())
    with pytest.raises(ValueError, match="members must be at least 1, got 0"):
        summarize(probs_SBC, members=0)


@pytest.mark.parametrize("samples", [20, 60])
@pytest.mark.parametrize("masks", DESIGNS)
def test_the_standard_error_is_that_over_seeds(kinds, samples, masks):
    """Compared with the spread of the mean over 200 seeds around the mean over many masks."""
    graph = join_networks(kinds["together"]).graph()
    images_B = images(4)
    found = [graph.estimate(images_B, samples, seed, masks=masks) for seed in range(200)]
    means_NBC = np.stack([one.mean for one in found])
    reference_BC = np.mean([graph.estimate(images_B, 300, 10**6 + seed, masks=masks).mean for seed in range(40)], 0)
    actual_BC = np.sqrt(((means_NBC - reference_BC) ** 2).mean(axis=0))
    given_BC = np.sqrt(np.mean([one.standard_error**2 for one in found], axis=0))
    ratio_BC = given_BC / actual_BC
    assert (ratio_BC > 0.85).all()
    assert ratio_BC.mean() < 1.6
