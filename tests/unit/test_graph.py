"""Graphs run by ONNX Runtime: the numbers of torch, whatever is computed together, and what is refused."""

import dataclasses
import inspect
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from zoo import SIZES, make

from model import Graph, MonteCarloDropout, load_artifact, summarize
from model.graph import GraphSpec
from model.network.compile import Compiled, compile_to_files
from model.session import OPSET, read_opsets

DESIGNS = ["stratified", "independent"]


def compiled(name: str, split_flops: int) -> Compiled:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.network.tracing._SPLIT_FLOPS", split_flops)
        return compile_to_files(make(name), np.ones((1, 8, 8), np.float32))


@pytest.fixture(scope="module")
def graphs() -> dict[str, Compiled]:
    """Of several images at once, in one file and in two; and of one image at a time, in two."""
    embedded = load_artifact()
    return {
        "embedded": Compiled(embedded.spec, embedded.files, 0.0),
        "split": compiled("lenet", 0),
        "one image": compiled("mlp", 0),
    }


@pytest.fixture(params=["embedded", "split", "one image"])
def parts(request, graphs) -> Compiled:
    return graphs[request.param]


@pytest.fixture
def graph(parts) -> Graph:
    return parts.graph()


def images(graph: Graph, count: int = 5) -> np.ndarray:
    return np.random.default_rng(41).random((count, *graph.spec.image), dtype=np.float32)


def test_the_parts_of_a_graph_are_as_expected(graphs):
    """Matrices of 64 x 12 and 12 x 12 come before the first mask, two of 12 x 12 and one of 12 x 4 after it."""
    assert {name: (one.spec.batched, sorted(one.files)) for name, one in graphs.items()} == {
        "embedded": (True, ["network.onnx"]),
        "split": (True, ["network.onnx", "prefix.onnx"]),
        "one image": (False, ["network.onnx", "prefix.onnx"]),
    }
    flops = [inputs * outputs for inputs, outputs in SIZES]
    assert graphs["one image"].spec.shared == pytest.approx(sum(flops[:2]) / sum(flops))


@pytest.mark.parametrize("masks", DESIGNS)
def test_the_embedded_graph_equals_the_embedded_network(masks):
    artifact = load_artifact()
    mc, images_B = MonteCarloDropout(artifact.network), images(artifact.engine)
    expected = mc.sample(torch.from_numpy(images_B), samples=137, seed=2**64 - 1, masks=masks).numpy()
    found = artifact.engine.sample(images_B, samples=137, seed=2**64 - 1, masks=masks)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 5e-6  # float32 logits of up to 30 are that exact
    assert np.abs(artifact.engine.predict(images_B) - mc.predict(torch.from_numpy(images_B)).numpy()).max() < 1e-6


def test_an_image_doesnt_depend_on_its_neighbours(graph):
    images_B = images(graph, 33)
    together, predicted = graph.sample(images_B, samples=45, seed=3), graph.predict(images_B)
    for first, stop in ((0, 1), (1, 3), (4, 9), (9, 33)):
        assert np.array_equal(graph.sample(images_B[first:stop], samples=45, seed=3), together[:, first:stop])
        assert np.array_equal(graph.predict(images_B[first:stop]), predicted[first:stop])
    assert np.array_equal(graph.sample(images_B[::-1], samples=45, seed=3), together[:, ::-1])


@pytest.mark.parametrize("masks", DESIGNS)
@pytest.mark.parametrize("together", [1, 2, 7, 10, 44, 45, 90])
def test_division_into_chunks_changes_no_bit(parts, masks, together, monkeypatch):
    images_B = images(parts.graph())
    expected = parts.graph().sample(images_B, samples=45, seed=3, masks=masks)
    for name in ("_CHUNK_BYTES", "_BATCH_BYTES"):
        monkeypatch.setattr(f"model.graph.{name}", together * parts.spec.mask_bytes)
    assert np.array_equal(parts.graph().sample(images_B, samples=45, seed=3, masks=masks), expected)


def test_masks_kept_or_as_bytes_change_no_bit(parts, monkeypatch):
    images_B, graph = images(parts.graph()), parts.graph()
    expected = {(seed, masks): graph.sample(images_B, 45, seed, masks=masks) for seed in range(3) for masks in DESIGNS}
    for small, kept in ((0, 2**25), (2**18, 0), (0, 10_000)):
        monkeypatch.setattr("model.graph._SMALL_MASKS", small)
        monkeypatch.setattr("model.graph._CACHED_BYTES", kept)
        other = parts.graph()
        for _ in range(2):
            for (seed, masks), probs_SBC in expected.items():
                assert np.array_equal(other.sample(images_B, 45, seed, masks=masks), probs_SBC)
                assert sum(one.nbytes for one in other._masks._kept.values()) == other._masks._bytes <= kept


@pytest.mark.parametrize("masks", DESIGNS)
def test_fewer_masks_are_the_first_of_more(graph, masks):
    images_B = images(graph)
    whole = graph.sample(images_B, samples=120, seed=9, masks=masks)
    for samples in (2, 3, 20, 99, 119):
        assert np.array_equal(graph.sample(images_B, samples=samples, seed=9, masks=masks), whole[:samples])
    whole = graph.logits(images_B, (range(120), 9, masks))
    for some in (range(1), range(7, 8), range(13, 95), range(120)):
        assert np.array_equal(graph.logits(images_B, (some, 9, masks)), whole[some.start : some.stop])


def test_probabilities_are_the_softmax_of_the_logits(graph):
    images_B = images(graph)
    for logits_SBC, probs_SBC in (
        (graph.logits(images_B), graph.predict(images_B)[None]),
        (graph.logits(images_B, (range(30), 4, "stratified")), graph.sample(images_B, 30, 4)),
    ):
        expected = torch.from_numpy(logits_SBC).double().softmax(-1).numpy()
        assert np.abs(probs_SBC - expected).max() < 1e-6


def test_other_seeds_and_designs_give_other_masks(graph):
    images_B = images(graph)
    first, *others = (
        graph.sample(images_B, 20, seed, masks=masks)
        for seed, masks in ((5, "stratified"), (5, "independent"), (6, "stratified"))
    )
    assert np.array_equal(graph.sample(images_B, 20, 5), first)
    for other in others:
        assert not np.allclose(other, first, atol=1e-3)


def test_no_images_give_no_rows(graph):
    none = images(graph, 0)
    assert graph.predict(none).shape == (0, graph.spec.classes)
    assert graph.sample(none, samples=7).shape == (7, 0, graph.spec.classes)
    assert graph.estimate(none).mean.shape == (0, graph.spec.classes)
    probs_SBC, found = graph.sample_until(none)
    assert (probs_SBC.shape, found.mean.shape) == ((20, 0, graph.spec.classes), (0, graph.spec.classes))


def test_the_layout_of_images_in_memory_has_no_effect(graph):
    images_B = images(graph)
    before, expected = images_B.copy(), graph.sample(images_B, 10)
    wide = np.zeros((*images_B.shape[:-1], 2 * images_B.shape[-1]), np.float32)
    wide[..., ::2] = images_B
    read_only = images_B.copy()
    read_only.flags.writeable = False
    for other in (np.asfortranarray(images_B), wide[..., ::2], images_B[::-1].copy()[::-1], read_only):
        assert np.array_equal(graph.sample(other, 10), expected)
    assert np.array_equal(images_B, before)


@pytest.mark.parametrize("masks", DESIGNS)
def test_estimate_is_the_summary_of_the_samples(graph, masks):
    images_B = images(graph)
    probs_SBC, found = graph.sample_and_summarize(images_B, samples=40, seed=8, masks=masks)
    assert np.array_equal(probs_SBC, graph.sample(images_B, samples=40, seed=8, masks=masks))
    for name, value in vars(summarize(probs_SBC, masks=masks)).items():
        assert np.array_equal(value, getattr(found, name))
        assert np.array_equal(value, getattr(graph.estimate(images_B, 40, 8, masks=masks), name))


@pytest.mark.parametrize("masks", DESIGNS)
@pytest.mark.parametrize("tolerance", [1e-9, 0.002, 0.02, 0.5])
def test_sampling_until_a_tolerance_is_sampling_that_many(graph, masks, tolerance):
    images_B = images(graph)
    probs_SBC, found = graph.sample_until(images_B, tolerance=tolerance, max_samples=125, seed=3, masks=masks)
    used, tops_B1 = len(probs_SBC), found.mean.argmax(1)[:, None]
    assert np.array_equal(probs_SBC, graph.sample(images_B, used, 3, masks=masks))
    for name, value in vars(summarize(probs_SBC, masks=masks)).items():
        assert np.array_equal(value, getattr(found, name))
    assert used == 125 or np.take_along_axis(found.standard_error, tops_B1, 1).max() <= tolerance
    assert (used == 125) == (tolerance == 1e-9) or tolerance == 0.002
    assert used == 20 or tolerance < 0.5


def test_a_tolerance_that_cant_be_met_is_refused(graph):
    for tolerance in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"the tolerance must be above 0, got {tolerance}"):
            graph.sample_until(images(graph), tolerance=tolerance)
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        graph.sample_until(images(graph), max_samples=1)


def test_images_of_another_kind_or_shape_are_refused(graph):
    images_B = images(graph)
    shape = r"\(B, 1, {0}, {0}\)".format(graph.spec.image[-1])
    for call in (graph.predict, graph.sample, graph.estimate, graph.logits, graph.sample_until):
        for dtype in (np.uint8, np.float64, np.float16):
            with pytest.raises(TypeError, match=f"images must be float32, got {np.dtype(dtype)}"):
                call(images_B.astype(dtype))
        for other in (images_B[0], images_B[:, 0], images_B[..., 1:], images_B[0, 0, 0], np.float32(1)):
            with pytest.raises(ValueError, match=rf"images must have the shape {shape}, got \("):
                call(other)


def test_numbers_seeds_and_designs_out_of_range_are_refused(graph):
    for given in (images(graph), images(graph, 0)):
        for samples in (1, 0, -5):
            with pytest.raises(ValueError, match=f"samples must be at least 2, got {samples}: one mask has no spread"):
                graph.sample(given, samples)
        for seed in (-1, 2**64):
            with pytest.raises(ValueError, match=rf"seed must be in 0\.\.2\*\*64 - 1, got {seed}"):
                graph.sample(given, seed=seed)
        for seed in (1.0, "1", None):
            with pytest.raises(TypeError, match=f"seed must be a whole number, got {seed!r}"):
                graph.sample(given, seed=seed)
        with pytest.raises(ValueError, match="masks must be one of stratified, independent, got 'sobol'"):
            graph.sample(given, masks="sobol")


def test_threads_that_share_a_graph_get_the_same_bits(parts, monkeypatch):
    """With a cache so small that masks are thrown out while others draw them."""
    monkeypatch.setattr("model.graph._CACHED_BYTES", 20_000)
    images_B, graph = images(parts.graph()), parts.graph()
    expected = {seed: parts.graph().sample(images_B, 30, seed) for seed in range(4)}
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda index: graph.sample(images_B, 30, index % 4), range(60)))
    assert all(np.array_equal(probs_SBC, expected[index % 4]) for index, probs_SBC in enumerate(found))
    assert sum(one.nbytes for one in graph._masks._kept.values()) == graph._masks._bytes


def test_defaults_are_those_of_live_networks():
    for method in ("sample", "sample_until"):
        live, compiled_ = (inspect.signature(getattr(kind, method)).parameters for kind in (MonteCarloDropout, Graph))
        shared = live.keys() & compiled_.keys()
        assert {name: live[name].default for name in shared} == {name: compiled_[name].default for name in shared}
        assert shared >= {"seed", "masks"}


def test_the_prefix_is_computed_once_for_each_image_within_its_context(graphs, monkeypatch):
    graph, other = (graphs["split"].graph() for _ in range(2))
    images_B, computed = images(graph, 2), []
    run = graph._prefix.run

    class Counted:
        def run(self, *arguments):
            computed.append(arguments)
            return run(*arguments)

    graph._prefix = Counted()
    with graph.share_prefix():
        for image_1 in (images_B[:1], images_B[1:], images_B[:1]):
            changing = image_1.copy()
            assert np.array_equal(graph.predict(changing), other.predict(image_1))
            assert np.array_equal(graph.sample(changing, 20), other.sample(image_1, 20))
            for found, expected in zip(
                graph.predict_with_features(changing), other.predict_with_features(image_1), strict=True
            ):
                assert np.array_equal(found, expected)
            changing += 1  # which must not be taken for the image that was computed
            assert np.array_equal(graph.predict(changing), other.predict(changing))
    assert len(computed) == 4
    graph.predict(images_B)
    graph.predict(images_B)
    assert len(computed) == 6


def test_features_are_what_the_last_layer_takes(graphs):
    graph, network = graphs["split"].graph(), make("lenet").eval()
    images_B, seen = images(graph), []
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(torch.from_numpy(images_B))
    probs_BC, features_BF = graph.predict_with_features(images_B)
    assert np.allclose(features_BF, seen[0], atol=1e-5)
    assert np.array_equal(probs_BC, graph.predict(images_B))


def test_a_description_survives_json(parts):
    assert GraphSpec.from_json(json.loads(json.dumps(parts.spec.to_json()))) == parts.spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 0}, "expected a size of at least 1, got 0"),
        ({"classes": True}, "expected a size of at least 1, got True"),
        ({"image": [1, 8.0, 8]}, "expected a size of at least 1, got 8.0"),
        ({"image": None}, "expected a description of a graph"),
        ({"mask_bytes": -1}, "expected a size of at least 1, got -1"),
        ({"dropout": []}, "expected at least one use of dropout"),
        ({"dropout": [{"name": "", "p": 0, "shape": [3]}]}, r"with probabilities in \(0, 1\]"),
        ({"dropout": [{"name": "", "p": 1.5, "shape": [3]}]}, r"with probabilities in \(0, 1\]"),
        ({"dropout": [{"p": 0.5, "shape": [3]}]}, "expected a description of a graph, got one with a bad 'name'"),
        ({"dropout": [3]}, "expected a description of a graph"),
        ({"shared": []}, "expected a description of a graph"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(graphs, change, message):
    with pytest.raises(ValueError, match=message):
        GraphSpec.from_json(graphs["split"].spec.to_json() | change)
    for name in change:
        fields = graphs["split"].spec.to_json()
        del fields[name]
        with pytest.raises(ValueError, match=f"expected a description of a graph, got one with a bad '{name}'"):
            GraphSpec.from_json(fields)


def test_files_that_arent_those_of_the_description_are_refused(parts):
    spec, files = parts.spec, parts.files
    first, *rest = spec.sites
    for wrong, message in (
        ({"sites": (*spec.sites, first)}, r"network\.onnx: input mask_\d: expected float .*, got none"),
        ({"sites": (first._replace(shape=(3,)), *rest)}, r"network\.onnx: input mask_0: expected float"),
        ({"sites": spec.sites[:1]}, r"network\.onnx: expected the inputs .*, got"),
        ({"image": (1, 5, 5)}, r"expected an input image \(1, 5, 5\), got"),
        ({"classes": spec.classes + 1}, f"expected an output probs of {spec.classes + 1} classes"),
    ):
        with pytest.raises(ValueError, match=message):
            Graph(dataclasses.replace(spec, **wrong), files)
    for given, message in (
        ({"network.onnx": files["network.onnx"][:100]}, r"network\.onnx: ONNX Runtime can't read it"),
        ({"prefix.onnx": files["network.onnx"]}, "expected a file network.onnx, got prefix.onnx"),
        ({}, "expected a file network.onnx, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            Graph(spec, given)
    if "prefix.onnx" in files:
        with pytest.raises(ValueError, match=r"network\.onnx: expected the inputs .*image.*, got"):
            Graph(spec, {"network.onnx": files["network.onnx"]})


def test_sampling_until_a_tolerance_computes_each_mask_once(graph, monkeypatch):
    computed = []

    def noted(self, output, images_B, mask_range, run=Graph._run):
        computed.append(mask_range[0])
        return run(self, output, images_B, mask_range)

    monkeypatch.setattr(Graph, "_run", noted)
    probs_SBC, _ = graph.sample_until(images(graph, 1), tolerance=1e-9, max_samples=150, seed=6)
    assert [mask for masks in computed for mask in masks] == list(range(150))
    assert len(computed) > 1
    monkeypatch.undo()
    assert np.array_equal(probs_SBC, graph.sample(images(graph, 1), 150, 6))


def test_the_latest_masks_are_kept_and_old_ones_are_not(graph):
    cache = graph._masks
    first = cache.draw(range(10), 0, "stratified")
    assert list(first) == [f"mask_{site}" for site in range(len(graph.spec.sites))]
    most = max(64 // len(first), 8)
    for seed in range(1, 2 * most):
        cache.draw(range(10), seed, "stratified")
        assert cache.draw(range(10), 0, "stratified") is first
    for seed in range(1, most + 1):
        cache.draw(range(20), seed, "stratified")
    again = cache.draw(range(10), 0, "stratified")
    assert all(again[name] is not first[name] and np.array_equal(again[name], first[name]) for name in first)
    assert len(cache._kept) == most


def changed(data: bytes, change) -> bytes:
    model = onnx.load_from_string(data)
    change(model)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: setattr(model.opset_import[0], "version", OPSET - 1), "got ONNX 19: compile the network again"),
        (lambda model: setattr(model.opset_import[0], "version", OPSET + 1), "got ONNX 21: compile the network again"),
        (lambda model: setattr(model.opset_import[0], "version", 999), "can't read it .* Opset 999 .*"),
        (lambda model: model.opset_import.add(domain="com.microsoft", version=1), "ONNX 20, com.microsoft 1: .*"),
        (lambda model: model.opset_import.add(domain="", version=OPSET), "got ONNX 20, ONNX 20: .*"),
        (lambda model: setattr(model.graph.node[0], "domain", "other"), "can't read it .* domain 'other'.*"),
    ],
)
def test_a_graph_of_other_operators_is_refused_in_one_line(graphs, change, message):
    one = graphs["split"]
    for name, data in one.files.items():
        with pytest.raises(ValueError, match=f"^{name}: .*{message}") as refused:
            Graph(one.spec, one.files | {name: changed(data, change)})
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["embedded", "split", "one image"])
def test_the_operators_of_a_graph_are_read_as_onnx_reads_them(graphs, name):
    for data in graphs[name].files.values():
        expected = [(one.domain, one.version) for one in onnx.load_from_string(data).opset_import]
        assert read_opsets(data) == expected == [("", OPSET)]
        with pytest.raises(ValueError, match="expected the fields of an ONNX model, got field 99 of kind 1"):
            read_opsets(data + bytes([0x99, 0x06]) + bytes(8))
        model = onnx.load_from_string(data)
        onnx.helper.set_model_props(model, {"": "a field with a higher number"})
        assert read_opsets(model.SerializeToString()) == expected
