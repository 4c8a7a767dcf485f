"""The studies: their arithmetic against second implementations, their document, and the options that are refused."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from server import ROOT
from torch import Tensor
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from model import MLPConfig, MonteCarloDropout, entropy
from training.data import Images
from training.recipes import RECIPES
from training.studies import document
from training.studies.__main__ import app
from training.studies.catalogue import STUDIES
from training.studies.chapter import Concise, Scratch, demonstrate
from training.studies.claims import claim
from training.studies.dropconnect import build
from training.studies.intervals import Estimate, estimate, holm, paired_p
from training.studies.measurements import FULL, QUICK
from training.studies.perturbations import Draws, Streams, mask_weights, perturb, relative_variance
from training.studies.stack import DivergenceError, Stack, Variant
from training.studies.study import Findings, Plan, Results
from training.studies.table import ResultsTable, ResultsTableError, Row
from training.studies.workers import missing_units

KINDS = ("dropout", "balanced", "gaussian", "uniform", "additive")
SMALL = replace(RECIPES["chapter"], architecture=MLPConfig(hidden=(24, 16)), batch_size=20, initial_std=None, epochs=2)
FULL_PLAN = Plan(FULL, 5, None, quick=False)
QUICK_PLAN = Plan(QUICK, 2, None, quick=True)
DOCS = ROOT / "docs"


def some_images(count: int = 50) -> Images:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.randint(10, (count,), generator=generator))


def variants() -> list[Variant]:
    return [
        Variant(name=f"{kind} {decay}", rates=(0.2, 0.5), noise=kind, weight_decay=decay)
        for kind in (*KINDS, "dropconnect")
        for decay in (0.0, 0.1)
    ] + [Variant(name="none")]


# Noise.


def drawn(kind: str, rate: float, shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor | None]:
    return perturb(kind, rate, Draws(shape, Streams(seed), 0), torch.tensor(3.0))


@pytest.mark.parametrize("rate", [0.2, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_keeps_the_mean_and_has_the_variance_of_dropout(kind, rate):
    """h = 2 everywhere, mean square told as 3: variance a h^2 = 4 a, or 3 a if additive, within 6 standard errors."""
    factor, shift = drawn(kind, rate, (1000, 200))
    out = (2 * factor + (0 if shift is None else shift)).expand(1000, 200).double()
    expected = relative_variance(rate) * (3 if kind == "additive" else 4)
    assert relative_variance(rate) == pytest.approx({0.2: 0.25, 0.5: 1.0}[rate])
    fourth = (out - 2).pow(4).mean().item()
    assert out.mean().item() == pytest.approx(2, abs=6 * (expected / out.numel()) ** 0.5)
    assert out.var().item() == pytest.approx(expected, abs=6 * ((fourth - expected**2) / out.numel()) ** 0.5 + 0.01)


def test_balanced_dropout_balances_each_unit_independently():
    kept = drawn("balanced", 0.25, (64, 3000))[0] > 0
    assert (kept.sum(dim=0) == 48).all()
    assert kept.sum(dim=1).double().std().item() == pytest.approx((3000 * 0.25 * 0.75) ** 0.5, rel=0.35)
    correlation = np.corrcoef(kept[:, :200].double().T.numpy())[np.triu_indices(200, 1)]
    assert abs(correlation.mean()) < 0.02


def test_balanced_dropout_of_one_mask_is_ordinary_dropout():
    one, other = (drawn(kind, 0.3, (1, 500))[0] for kind in ("balanced", "dropout"))
    assert torch.equal(one, other)


def test_draws_of_a_network_are_independent_of_the_others():
    alone = Draws((5, 7), Streams(4, 2), 1).uniform
    draws = Draws((5, 7), Streams(4, 2), 1)
    assert draws.normal.shape == draws.levels.shape == (5, 7)
    assert torch.equal(draws.uniform, alone)
    assert not torch.equal(Draws((5, 7), Streams(4, 2), 0).uniform, alone)
    assert not torch.equal(Draws((5, 7), Streams(5, 2), 1).uniform, alone)


# The stack.


def by_autograd(stack: Stack, k: int, inputs_BU: Tensor, labels_B: Tensor, rate: float) -> list[Tensor]:
    """Weights and biases of network k after its first step, in double precision, by autograd."""
    variant, streams = stack.variants[k], Streams(stack.seed, 0)
    parameters = [part[k].double().requires_grad_() for part in (*stack.weights_KUV, *stack.biases_K1V)]
    weights, biases = parameters[:3], parameters[3:]
    units_BU = (inputs_BU.double() @ weights[0] + biases[0]).relu()
    for layer, p in enumerate(variant.rates):
        mask = torch.ones(())
        if p and variant.noise == "dropconnect":
            mask = mask_weights(p, Draws(tuple(weights[layer + 1].shape), streams, 3 + layer))
        elif p:
            square = units_BU.detach().square().mean()
            factor, shift = perturb(variant.noise, p, Draws(tuple(units_BU.shape), streams, layer), square)
            units_BU = units_BU * factor + (0 if shift is None else shift)
        units_BU = units_BU @ (weights[layer + 1] * mask) + biases[layer + 1]
        if layer == 0:
            units_BU = units_BU.relu()
    penalty = variant.weight_decay / 2 * sum(weight.square().sum() for weight in weights)
    (cross_entropy(units_BU, labels_B) + penalty).backward()
    return [(parameter - rate * parameter.grad).detach() for parameter in parameters]


def test_a_step_is_that_of_autograd_for_every_noise():
    images, stack = some_images(), Stack(variants(), SMALL, seed=3)
    for weight_KUV in stack.weights_KUV:
        weight_KUV.mul_(3)
    inputs_BU = images.inputs_B.flatten(1)
    expected = [by_autograd(stack, k, inputs_BU, images.labels_B, 0.3) for k in range(len(stack.variants))]
    before = [part.clone() for part in (*stack.weights_KUV, *stack.biases_K1V)]
    stack.step(inputs_BU, images.labels_B, rate=0.3)
    for place, part in enumerate((*stack.weights_KUV, *stack.biases_K1V)):
        assert not torch.allclose(part, before[place], atol=1e-4)
        for k, variant in enumerate(stack.variants):
            assert torch.allclose(part[k].double(), expected[k][place], atol=1e-6), (variant.name, place)


def trained(chosen: list[Variant], **changes: Any) -> Stack:
    stack = Stack(chosen, replace(SMALL, **changes), seed=5)
    assert list(stack.epochs(some_images(), 2)) == [0, 1, 2]
    return stack


def test_network_is_independent_of_those_trained_with_it():
    together = trained(variants())
    noisy = together.predict(some_images().inputs_B.flatten(1), passes=3).probs_KBC
    for k, variant in enumerate(together.variants):
        alone = trained([variant])
        for one, all_of in zip(alone.weights_KUV, together.weights_KUV, strict=True):
            assert torch.equal(one[0], all_of[k]), variant.name
        assert torch.equal(alone.predict(some_images().inputs_B.flatten(1), passes=3).probs_KBC[0], noisy[k])


def test_a_linear_schedule_ends_with_hardly_a_step():
    images, stack = some_images(), Stack([Variant(name="none")], replace(SMALL, schedule="linear"), seed=5)
    rates = []
    stack.step = lambda *_, rate: rates.append(rate)
    list(stack.epochs(images, 2))
    assert rates == pytest.approx([0.5 * (1 - step / 6) for step in range(6)])
    stack.recipe = replace(SMALL, schedule="constant")
    list(stack.epochs(images, 1))
    assert rates[6:] == [0.5] * 3


def test_a_network_that_diverges_is_named():
    stack = Stack([Variant(name="calm"), Variant(name="wild", rates=(0.5, 0.5))], SMALL, seed=5)
    stack.weights_KUV[0][1] = torch.inf
    with pytest.raises(
        DivergenceError, match=r"^wild, seed 5: the weights aren't finite after epoch 1; a learning rate"
    ):
        list(stack.epochs(some_images(), 2))


def test_extracted_network_predicts_the_same_and_agrees_with_monte_carlo():
    stack, inputs_BU = trained([Variant(name="dropout", rates=(0.2, 0.5))]), some_images().inputs_B.flatten(1)
    mc = MonteCarloDropout(stack.network(0))
    plain = stack.predict(inputs_BU)
    assert torch.allclose(plain.probs_KBC[0].float(), mc.predict(inputs_BU), atol=1e-6)
    assert torch.allclose(plain.expected_KB, plain.predictive_KB)
    passes = 2000
    found, probs_SBC = stack.predict(inputs_BU, passes=passes), mc.sample(inputs_BU, samples=passes, seed=1).double()
    error_BC = probs_SBC.std(dim=0) * (2 / passes) ** 0.5
    assert ((found.probs_KBC[0] - probs_SBC.mean(dim=0)).abs() < 6 * error_BC + 1e-6).all()
    assert torch.allclose(found.expected_KB[0], entropy(probs_SBC).mean(dim=0), atol=0.02)
    assert (found.predictive_KB > found.expected_KB).all()


def test_additive_noise_at_test_time_is_independent_of_other_images():
    stack, inputs_BU = trained([Variant(name="additive", rates=(0.2, 0.5), noise="additive")]), torch.rand(30, 784)
    all_KBC = stack.predict(inputs_BU, passes=4).probs_KBC
    assert torch.allclose(stack.predict(inputs_BU[:10], passes=4).probs_KBC, all_KBC[:, :10], atol=1e-6)


def test_the_layers_of_dropconnect_have_the_stacks_spread():
    variant = Variant(name="dropconnect", rates=(0.2, 0.5), noise="dropconnect")
    stack = Stack([variant], replace(RECIPES["chapter"], initial_std=None), seed=6)
    network, inputs_BU = build(variant), some_images(4).inputs_B.flatten(1)
    with torch.no_grad():
        for place, layer in enumerate((network[0], network[2], network[4])):
            layer.weight.copy_(stack.weights_KUV[place][0].T)
            layer.bias.copy_(stack.biases_K1V[place][0, 0])
        by_layers = torch.stack([network(inputs_BU) for _ in range(600)])
        units_KBU, streams = stack.first_layer(inputs_BU), Streams(7)
        by_stack = torch.cat([stack.forward(units_KBU, streams).logits_KBC for _ in range(600)])
    assert torch.allclose(by_layers.mean(dim=0), by_stack.mean(dim=0), atol=0.02)
    assert torch.allclose(by_layers.std(dim=0), by_stack.std(dim=0), rtol=0.15)


def test_scratch_and_concise_take_the_same_steps_without_dropout():
    images = some_images()
    network = Stack([Variant(name="none")], SMALL, seed=8).network(0)
    scratch, concise = Scratch(network, (0.0, 0.0), 0.3), Concise(network, 0.3)
    for _ in range(3):
        for model in (scratch, concise):
            model.step(images.inputs_B.flatten(1), images.labels_B)
    with torch.no_grad():
        results = [model(images.inputs_B.flatten(1), training=False) for model in (scratch, concise)]
    assert torch.allclose(*results, atol=1e-5)


def test_the_chapters_demonstration():
    X, same = demonstrate(0.0)
    assert X.tolist() == [list(range(8)), list(range(8, 16))]
    assert torch.equal(same, X)
    _, half = demonstrate(0.5)
    assert ((half == 0) | (half == 2 * X)).all()
    assert not demonstrate(1.0)[1].any()


# What is made of the numbers.


def test_holm_correction_matches_a_worked_example():
    """Sorted 0.01, 0.02, 0.03 and 0.5, times 4, 3, 2 and 1: 0.04, 0.06, 0.06, 0.5."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_paired_test_and_the_interval_of_the_difference_agree():
    """t of the differences 1, 2, 3, 4, 5 is 3 / sqrt(2.5 / 5) = 4.243; with 4 degrees of freedom, t_0.975 is 2.776."""
    other = np.array([5.0, 1.0, 7.0, 2.0, 8.0])
    one = other + np.arange(1, 6)
    assert paired_p(one, other) == pytest.approx(0.01324, abs=1e-5)
    assert estimate(one - other).pair == pytest.approx((3, 2.776 * 0.5**0.5), abs=1e-3)


@pytest.mark.parametrize(
    ("mean", "said", "is_open"),
    [
        (0.3, "NLL is 0.30 ± 0.20 higher with A than with B.", False),
        (-0.3, "NLL is 0.30 ± 0.20 lower with A than with B.", False),
        (0.1, "whether NLL is higher with A or with B (0.10 ± 0.20)", True),
        (-0.2, "whether NLL is higher with A or with B (-0.20 ± 0.20)", True),
    ],
)
def test_claim_states_the_interval(mean, said, is_open):
    found = claim(Estimate(mean, 0.2), "NLL", "with A", "with B", digits=2)
    assert (found.text, found.is_open) == (said, is_open)


def rows_of(key: str = "k", value: float = 1 / 3) -> list[Row]:
    return [Row("rates", "0/0", seed, key, "nll", 0, value) for seed in range(2)]


def test_table_round_trip_keeps_cells_with_other_keys(tmp_path):
    path = tmp_path / "new" / "results.csv"
    table = ResultsTable(path)
    table.add(rows_of())
    table.add(rows_of("other", 2))
    table.add(rows_of(value=0.25)[:1])
    again = ResultsTable(path)
    values = {(seed, key): again["rates", "0/0", seed, key][0].value for seed in range(2) for key in ("k", "other")}
    assert values == {(0, "k"): 0.25, (1, "k"): 0.33333333, (0, "other"): 2, (1, "other"): 2}
    assert ("rates", "0/0", 2, "k") not in again


def test_two_runs_at_once_lose_nothing_of_each_other(tmp_path):
    path = tmp_path / "results.csv"
    one, other = ResultsTable(path), ResultsTable(path)
    one.add(rows_of())
    other.add(rows_of("other"))
    assert all(("rates", "0/0", seed, key) in ResultsTable(path) for seed in range(2) for key in ("k", "other"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_isnt_finite_never_comes_into_the_table(value):
    with pytest.raises(ValueError, match="nll of 0/0 in rates: must be finite, got"):
        rows_of(value=value)


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "study,configuration,seed,key,metric,at,value\nx,y,z\n"])
def test_invalid_table_file_is_refused_and_unchanged(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_text(content)
    with pytest.raises(
        ResultsTableError, match=r"results\.csv: expected a table with the columns study, .*move it away"
    ):
        ResultsTable(path)
    assert path.read_text() == content


def test_key_changes_with_every_input():
    study, variant = STUDIES["rates"], STUDIES["rates"].variants[4]
    changed = [
        (study, variant, FULL_PLAN),
        (study, variant, QUICK_PLAN),
        (study, variant, replace(FULL_PLAN, epochs=3)),
        (study, variant, replace(FULL_PLAN, scale=replace(FULL, passes=10))),
        (study, variant, replace(FULL_PLAN, scale=replace(FULL, recipe=replace(FULL.recipe, erase=4)))),
        (study, variant, replace(FULL_PLAN, scale=replace(FULL, recipe=replace(FULL.recipe, batch_norm=True)))),
        (study, replace(variant, rates=(0.2, 0.3)), FULL_PLAN),
        (study, replace(variant, weight_decay=0.1), FULL_PLAN),
        (study, replace(variant, noise="uniform"), FULL_PLAN),
        (replace(study, version=2), variant, FULL_PLAN),
        (replace(study, schedule="constant"), variant, FULL_PLAN),
    ]
    keys = [study.key(variant, plan) for study, variant, plan in changed]
    assert len(set(keys)) == len(keys)
    assert study.key(variant, replace(FULL_PLAN, seeds=9)) == keys[0]


def test_only_missing_units_are_run(tmp_path):
    study, table = STUDIES["weight-decay"], ResultsTable(tmp_path / "results.csv")
    [first, second] = missing_units([study], QUICK_PLAN, table)
    assert (first.seed, second.seed) == (0, 1)
    assert first.variants == study.variants
    table.add([Row(*study.cell(variant, 0, QUICK_PLAN), "seconds", 0, 1) for variant in study.variants[:3]])
    assert [unit.variants for unit in missing_units([study], QUICK_PLAN, table)] == [study.variants[3:], study.variants]


# The results in the document.


@pytest.fixture(scope="module")
def full() -> ResultsTable:
    return ResultsTable(DOCS / document.FOLDER / document.RESULTS)


@pytest.fixture(scope="module")
def findings(full) -> dict[str, Findings]:
    return document.interpret_all(list(STUDIES.values()), FULL_PLAN, full)


def test_the_document_is_what_the_table_says(full, findings):
    studies = list(STUDIES.values())
    assert list(findings) == list(STUDIES)
    assert (DOCS / document.PAGE).read_text() == document.as_page(studies, findings, FULL_PLAN, full)
    for found in findings.values():
        assert all(check.holds for check in found.checks), found.checks
        for name in found.pictures:
            picture = DOCS / document.FOLDER / f"{name}.png"
            assert picture.read_bytes().startswith(b"\x89PNG")
            assert picture.stat().st_size < 150_000


def test_each_claim_of_the_document_has_its_interval(findings):
    for name, found in findings.items():
        for one in found.claims:
            exempt = name == "chapter" or one.text.startswith("Nothing is shown")
            assert exempt or re.search(r"\d ± \d", one.text), one.text


def test_networks_that_several_studies_train_are_the_same(full):
    alike = {"rates": ("0/0", "0.2/0.5"), "noise": ("none", "dropout")}
    found = {
        study: [
            Results(STUDIES[study], FULL_PLAN, full).values(name, metric)
            for name in names
            for metric in ("accuracy", "nll", "mc nll")
        ]
        for study, names in alike.items()
    }
    assert np.array_equal(found["rates"], found["noise"])


# Options.


def test_missing_digits_are_refused(fashion, tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["epochs", "--quick", "--out", str(out), "--mnist", str(tmp_path / "nothing.gz")])
    assert "nothing.gz: can't be read as images" in done.output
    assert done.exit_code == 1
    assert not out.exists()


def test_an_unknown_study_is_refused_with_all_names():
    done = CliRunner().invoke(app, ["dropuot"])
    assert done.exit_code == 2
    assert all(name in done.output for name in (*STUDIES, "all"))
