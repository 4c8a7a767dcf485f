import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

import training.fit
from model import MLPConfig
from training.cnn import CNNConfig
from training.data import Images
from training.fit import Fit, augment, evaluate_loss
from training.recipes import RECIPES, Recipe

SMALL = MLPConfig(hidden=(32, 16), dropout=(0.2, 0.5))
WITHOUT_DROPOUT = MLPConfig(hidden=(32, 16), dropout=(0.0, 0.0))
CHAPTER = replace(RECIPES["chapter"], architecture=SMALL, epochs=3, batch_size=32)
DEFAULT = replace(RECIPES["default"], architecture=SMALL, epochs=3, batch_size=32, average_decay=0.9)
CNN = replace(
    RECIPES["cnn"],
    architecture=CNNConfig(channels=(3, 4, 5), hidden=8),
    epochs=3,
    batch_size=32,
    erase=6,
    average_decay=0.9,
)
ALL = pytest.mark.parametrize("recipe", [CHAPTER, DEFAULT, CNN], ids=["chapter", "default", "cnn"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in training by default; more threads only get in each other's way with networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def striped(count: int, *, seed: int = 0) -> Images:
    """Noise with a bright stripe, whose height tells the class."""
    labels_B = torch.arange(count) % 10
    images_B = torch.randint(0, 60, (count, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    for image, label in zip(images_B, labels_B.tolist(), strict=True):
        image[2 * label + 4 : 2 * label + 6] = 220
    return Images(images_B, labels_B)


def copies(image: Images, count: int) -> Images:
    return Images(image.images_B.expand(count, -1, -1), image.labels_B.expand(count))


def begin(recipe: Recipe, *, seed: int = 0, train: Images | None = None, held_out: Images | None = None) -> Fit:
    # 100 images in batches of 32: the last batch is smaller.
    return Fit(recipe, train or striped(100), held_out or striped(30, seed=1), seed=seed, device=torch.device("cpu"))


def run(recipe: Recipe, **options: Any) -> Fit:
    fit = begin(recipe, **options)
    for _ in range(recipe.epochs):
        fit.run_epoch()
    return fit


def weights(fit: Fit) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in fit.network.parameters()])


def plain_loss_and_accuracy(network: nn.Module, images: Images) -> tuple[float, float]:
    """Mean of -log softmax at the label, and of hits, in numpy with float64."""
    with torch.no_grad():
        logits_BC = network((images.images_B.float() / 255)[:, None]).double().numpy()
    labels_B = images.labels_B.numpy()
    probs_BC = np.exp(logits_BC) / np.exp(logits_BC).sum(axis=1, keepdims=True)
    loss = np.mean([-np.log(probs_C[label]) for probs_C, label in zip(probs_BC, labels_B, strict=True)])
    return float(loss), float(np.mean(np.argmax(probs_BC, axis=1) == labels_B))


@contextmanager
def recording_linears() -> Iterator[list[tuple[int, Tensor, Tensor]]]:
    """Record width, input and output of each linear layer that runs in train mode."""
    calls: list[tuple[int, Tensor, Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear) and module.training:
            calls.append((module.in_features, inputs[0].detach().clone(), output.detach().clone()))

    handle = register_module_forward_hook(record)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def after_each_step(look: Callable[[torch.optim.Optimizer], Any]) -> Iterator[list[Any]]:
    """Collect what `look` sees after each step of any optimiser."""
    seen: list[Any] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(look(optimizer)))
    try:
        yield seen
    finally:
        handle.remove()


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """Move an image pixel by pixel; what is uncovered stays black."""
    height, width = image.shape
    moved = torch.zeros_like(image)
    for y, x in product(range(height), range(width)):
        if 0 <= y - down < height and 0 <= x - right < width:
            moved[y, x] = image[y - down, x - right]
    return moved


def small_images(count: int) -> Tensor:
    """Random images of 5 x 7 pixels without black, so that no two of their variants are the same."""
    return torch.randint(1, 256, (count, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(8))


def variants(image: Tensor, *, flip: bool, shift: int) -> list[list[list[int]]]:
    """All mirrored and shifted forms of an image, itself first, its moved forms next, then the mirrored ones."""
    offsets = sorted(product(range(-shift, shift + 1), repeat=2), key=lambda offset: offset != (0, 0))
    mirrored = [image, torch.tensor(np.fliplr(image.numpy()).copy())] if flip else [image]
    return [shifted(form, *offset).tolist() for form in mirrored for offset in offsets]


def drawn_variants(count: int, *, flip: bool, shift: int) -> np.ndarray[Any, Any]:
    """Augment one image many times; tell the place of each result among its variants."""
    image = small_images(1)
    torch.manual_seed(0)
    augmented_B = augment(image.expand(count, -1, -1), flip=flip, shift=shift)
    forms = variants(image[0], flip=flip, shift=shift)
    return np.array([forms.index(form) for form in augmented_B.tolist()])


@pytest.mark.parametrize(("flip", "shift"), [(False, 0), (True, 0), (False, 2), (True, 1)])
def test_every_augmented_image_is_its_original_mirrored_or_shifted(flip: bool, shift: int) -> None:
    images_B = small_images(60)
    torch.manual_seed(0)
    augmented_B = augment(images_B, flip=flip, shift=shift)
    for image, augmented in zip(images_B, augmented_B, strict=True):
        assert augmented.tolist() in variants(image, flip=flip, shift=shift)


@pytest.mark.parametrize(("flip", "shift"), [(False, 0), (True, 0), (False, 2), (True, 1)])
def test_augmentation_keeps_dtype_and_shape_and_leaves_its_input_alone(flip: bool, shift: int) -> None:
    images_B = small_images(60)
    before = images_B.clone()
    augmented_B = augment(images_B, flip=flip, shift=shift)
    assert augmented_B.dtype == torch.uint8
    assert augmented_B.shape == images_B.shape
    assert torch.equal(images_B, before)


def test_without_flip_and_shift_augmentation_is_the_identity() -> None:
    images_B = small_images(60)
    assert torch.equal(augment(images_B, flip=False, shift=0), images_B)


def test_half_of_the_images_are_mirrored() -> None:
    mirrored = (drawn_variants(4000, flip=True, shift=0) == 1).sum()
    assert abs(mirrored - 2000) < 5 * np.sqrt(4000 / 4)


@pytest.mark.parametrize("shift", [1, 2])
def test_half_of_the_images_are_moved_to_any_offset_alike(shift: int) -> None:
    places = (2 * shift + 1) ** 2
    counts = np.bincount(drawn_variants(4000, flip=False, shift=shift), minlength=places)
    # Half stay; the others draw one of all places, the original one among them.
    chances = np.full(places, 1 / (2 * places))
    chances[0] += 1 / 2
    assert (np.abs(counts - 4000 * chances) < 5 * np.sqrt(4000 * chances * (1 - chances))).all()


def test_half_of_the_images_lose_one_square_anywhere() -> None:
    images_B = torch.full((4000, 5, 7), 9, dtype=torch.uint8)
    torch.manual_seed(0)
    erased_B = augment(images_B, flip=False, shift=0, erase=3)
    assert (images_B == 9).all()
    squares = []
    for y, x in product(range(5), range(7)):
        square = np.full((5, 7), 9)
        square[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 0
        squares.append(square.tolist())
    places = [squares.index(image) for image in erased_B.tolist() if image != images_B[0].tolist()]
    assert abs(len(places) - 2000) < 5 * np.sqrt(4000 / 4)
    counts = np.bincount(places, minlength=35)
    assert (np.abs(counts - 2000 / 35) < 5 * np.sqrt(2000 / 35)).all()


def test_mirroring_and_shifting_are_drawn_independently() -> None:
    drawn = drawn_variants(4000, flip=True, shift=1)
    is_mirrored, is_moved = drawn >= 9, drawn % 9 > 0
    chance = (1 / 2) * (1 / 2) * (8 / 9)
    assert abs((is_mirrored & is_moved).sum() - 4000 * chance) < 5 * np.sqrt(4000 * chance * (1 - chance))


@ALL
def test_seed_determines_all_results(recipe: Recipe) -> None:
    first, again, other = run(recipe, seed=4), run(recipe, seed=4), run(recipe, seed=5)
    assert torch.equal(weights(first), weights(again))
    assert first.history == again.history
    assert not torch.equal(weights(first), weights(other))


@ALL
def test_resuming_after_each_epoch_gives_identical_results(recipe: Recipe) -> None:
    whole = run(recipe)
    part = begin(recipe)
    for _ in range(recipe.epochs):
        part.run_epoch()
        saved = io.BytesIO()
        torch.save(part.state_dict(), saved)
        saved.seek(0)
        part = begin(recipe)
        torch.manual_seed(99)  # whatever else the process draws
        part.load_state_dict(torch.load(saved, weights_only=True))
    assert part.history == whole.history
    assert torch.equal(weights(part), weights(whole))
    last, expected = part.state_dict()["network"], whole.state_dict()["network"]
    assert all(torch.equal(last[name], expected[name]) for name in expected)


def test_a_state_of_another_recipe_is_refused_and_changes_nothing() -> None:
    state = run(replace(DEFAULT, learning_rate=0.1)).state_dict()
    fit = begin(DEFAULT)
    before = weights(fit)
    with pytest.raises(ValueError, match=r"recipe: expected .*'learning_rate': 0.003.*checkpoint of .*rate': 0.1,"):
        fit.load_state_dict(state)
    assert fit.history == []
    assert torch.equal(weights(fit), before)


def test_a_state_of_another_seed_is_refused_and_changes_nothing() -> None:
    state = run(DEFAULT, seed=1).state_dict()
    fit = begin(DEFAULT, seed=2)
    before = weights(fit)
    with pytest.raises(ValueError, match="seed: expected 2, got a checkpoint of 1"):
        fit.load_state_dict(state)
    assert fit.history == []
    assert torch.equal(weights(fit), before)


def test_every_epoch_draws_its_own_randomness() -> None:
    # At learning rate 0 nothing but dropout tells one epoch from the next.
    history = run(replace(CHAPTER, learning_rate=0.0, initial_std=0.1)).history
    assert len({epoch.train_loss for epoch in history}) == len(history)


def test_each_epoch_visits_each_image_once_in_new_order() -> None:
    train = striped(100)
    fit = begin(CHAPTER, train=train)
    orders = []
    for _ in range(2):
        with recording_linears() as calls:
            fit.run_epoch()
        pixels_BP = torch.cat([inputs for width, inputs, _ in calls if width == 28 * 28])
        expected_BP = train.inputs_B.flatten(1)
        orders.append([(expected_BP == pixels_P).all(dim=1).nonzero().item() for pixels_P in pixels_BP])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))
    assert orders[0] != orders[1]
    assert list(range(100)) not in orders


def test_the_batches_have_the_recipes_size() -> None:
    with recording_linears() as calls:
        begin(CHAPTER).run_epoch()
    assert [len(inputs) for width, inputs, _ in calls if width == 28 * 28] == [32, 32, 32, 4]


def test_an_image_passes_under_several_masks_on_one_prefix() -> None:
    recipe = replace(CHAPTER, masks=3, batch_size=100, initial_std=None)
    with recording_linears() as calls:
        begin(recipe).run_epoch()
    (_, _, before_relu_BH), (_, masked_SBH, _), (_, _, logits_SBC) = calls
    hidden_BH = before_relu_BH.relu()
    assert hidden_BH.shape == (100, 32)
    assert logits_SBC.shape == (300, 10)
    first, second, third = ((part_BH != 0) for part_BH in masked_SBH.split(100))
    alive_BH = hidden_BH > 0
    for one_BH, other_BH in ((first, second), (first, third), (second, third)):
        # Two independent masks of p = 0.2 differ at a unit with probability 2 * 0.2 * 0.8.
        alive = alive_BH.sum().item()
        differing = (one_BH != other_BH)[alive_BH].sum().item()
        assert abs(differing - 0.32 * alive) < 5 * np.sqrt(alive * 0.32 * 0.68)


def test_no_two_images_steps_epochs_or_seeds_share_a_mask() -> None:
    # 32 copies of one image at learning rate 0, so that nothing but its mask tells one pass from another.
    architecture = MLPConfig(hidden=(256, 8), dropout=(0.5, 0.5))
    recipe = replace(CHAPTER, architecture=architecture, epochs=2, batch_size=16, learning_rate=0.0, initial_std=None)
    kept = []
    for seed in (1, 2):
        with recording_linears() as calls:
            run(replace(recipe, masks=3), seed=seed, train=copies(striped(1), 32))
        kept.append(torch.cat([inputs != 0 for width, inputs, _ in calls if width == 256]))
    assert [len(kept_BH) for kept_BH in kept] == [32 * 3 * 2] * 2
    alive_H = kept[0].any(dim=0) & kept[1].any(dim=0)  # by either seed's weights
    masks_BH = torch.cat(kept)[:, alive_H]
    assert len(masks_BH.unique(dim=0)) == len(masks_BH)


@pytest.mark.parametrize(("flip", "shift", "forms"), [(False, 0, 1), (True, 0, 2), (False, 1, 9), (True, 1, 18)])
def test_training_images_are_augmented_by_the_recipe(flip: bool, shift: int, forms: int) -> None:
    torch.manual_seed(8)
    noise = Images(torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    with recording_linears() as calls:
        begin(replace(CHAPTER, flip=flip, shift=shift), train=copies(noise, 400)).run_epoch()
    inputs_BP = torch.cat([inputs for width, inputs, _ in calls if width == 28 * 28])
    seen = (inputs_BP * 255).round().byte().unique(dim=0).view(-1, 28, 28).tolist()
    assert sorted(seen) == sorted(variants(noise.images_B[0], flip=flip, shift=shift))
    assert len(seen) == forms


def test_training_images_are_erased_by_the_recipe() -> None:
    white = Images(torch.full((1, 28, 28), 255, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    with recording_linears() as calls:
        begin(replace(CHAPTER, erase=6), train=copies(white, 400)).run_epoch()
    inputs_BP = torch.cat([inputs for width, inputs, _ in calls if width == 28 * 28])
    black_B = (inputs_BP == 0).sum(dim=1)
    assert ((inputs_BP == 0) | (inputs_BP == 1)).all()
    assert set(black_B.tolist()) <= {0, *(height * width for height in range(3, 7) for width in range(3, 7))}
    assert abs((black_B > 0).sum().item() - 200) < 5 * np.sqrt(400 / 4)


def test_training_dropout_has_its_rate_and_scale() -> None:
    architecture = MLPConfig(hidden=(64, 64), dropout=(0.3, 0.6))
    recipe = replace(CHAPTER, architecture=architecture, masks=2, batch_size=100, initial_std=None)
    with recording_linears() as calls:
        begin(recipe).run_epoch()
    (_, _, before_relu1_BH), (_, masked1_SBH, before_relu2_SBH), (_, masked2_SBH, _) = calls
    for p, hidden, masked in (
        (0.3, before_relu1_BH.relu().repeat(2, 1), masked1_SBH),
        (0.6, before_relu2_SBH.relu(), masked2_SBH),
    ):
        kept = masked != 0
        torch.testing.assert_close(masked[kept], hidden[kept] / (1 - p))
        alive = (hidden > 0).sum().item()
        assert abs((alive - kept.sum().item()) - alive * p) < 5 * np.sqrt(alive * p * (1 - p))


def test_without_dropout_several_masks_train_as_one_does() -> None:
    recipe = replace(CHAPTER, architecture=WITHOUT_DROPOUT, initial_std=None)
    one, three = run(recipe), run(replace(recipe, masks=3))
    torch.testing.assert_close(weights(three), weights(one), rtol=1e-4, atol=1e-6)
    assert three.history[-1].train_loss == pytest.approx(one.history[-1].train_loss, rel=1e-5)
    assert three.history[-1].train_accuracy == pytest.approx(one.history[-1].train_accuracy)


def test_the_averaged_network_is_an_exponential_moving_average_over_steps() -> None:
    recipe = replace(DEFAULT, average_decay=0.7, batch_norm=False)
    with after_each_step(
        lambda optimizer: np.concatenate(
            [parameter.detach().double().numpy().ravel() for parameter in optimizer.param_groups[0]["params"]]
        )
    ) as steps:
        fit = run(recipe)
    assert len(steps) == recipe.epochs * 4
    average = steps[0]
    for step in steps[1:]:
        average = 0.7 * average + 0.3 * step
    np.testing.assert_allclose(weights(fit).numpy(), average, rtol=1e-4, atol=1e-6)
    assert np.abs(average - steps[-1]).max() > 1e-3


def test_without_average_the_network_has_the_last_weights() -> None:
    with after_each_step(
        lambda optimizer: torch.cat([parameter.detach().flatten() for parameter in optimizer.param_groups[0]["params"]])
    ) as steps:
        fit = run(CHAPTER)
    assert torch.equal(weights(fit), steps[-1])


def test_one_cycle_peaks_at_the_rate_and_ends_near_zero() -> None:
    with after_each_step(lambda optimizer: optimizer.param_groups[0]["lr"]) as rates:
        run(replace(DEFAULT, epochs=10))
    # torch's OneCycleLR: from a 25th of the peak to the peak after 30% of the steps, and down to a 250,000th.
    assert len(rates) == 40
    assert rates[0] == pytest.approx(3e-3 / 25)
    assert rates[11] == pytest.approx(3e-3)
    assert max(rates) == rates[11]
    assert rates[-1] == pytest.approx(3e-3 / 250_000)


def test_the_constant_schedule_keeps_the_recipes_rate() -> None:
    with after_each_step(lambda optimizer: optimizer.param_groups[0]["lr"]) as rates:
        run(CHAPTER)
    assert rates == [0.5] * 12


def test_the_linear_schedule_falls_to_one_step_above_zero() -> None:
    with after_each_step(lambda optimizer: optimizer.param_groups[0]["lr"]) as rates:
        run(replace(CHAPTER, schedule="linear"))
    assert rates == pytest.approx([0.5 * (1 - step / 12) for step in range(12)])


@pytest.mark.parametrize(
    ("recipe", "kind", "decay"), [(CHAPTER, torch.optim.SGD, 0.0), (DEFAULT, torch.optim.AdamW, 0.05)]
)
def test_the_recipe_picks_optimiser_and_weight_decay(recipe: Recipe, kind: type, decay: float) -> None:
    with after_each_step(lambda optimizer: (type(optimizer), optimizer.param_groups[0]["weight_decay"])) as seen:
        begin(recipe).run_epoch()
    assert set(seen) == {(kind, decay)}


def test_chapter_recipe_has_normal_weights_and_default_biases() -> None:
    fit = begin(replace(CHAPTER, architecture=MLPConfig()))
    state = fit.network.state_dict()
    weight, bias = state["hidden1.weight"].double(), state["hidden1.bias"]
    # 200,704 weights: the standard error of their deviation is 0.01 / sqrt(2 * 200704).
    assert weight.std().item() == pytest.approx(0.01, abs=5 * 0.01 / np.sqrt(2 * weight.numel()))
    assert abs(weight.mean().item()) < 5 * 0.01 / np.sqrt(weight.numel())
    assert 0.035 < weight.abs().max().item() < 0.08
    # nn.Linear: uniform within 1 / sqrt(inputs).
    assert 0.9 / 28 < bias.abs().max().item() <= 1 / 28


@ALL
def test_held_out_images_never_influence_the_weights(recipe: Recipe) -> None:
    one, other = run(recipe, held_out=striped(30, seed=1)), run(recipe, held_out=striped(57, seed=2))
    assert torch.equal(weights(one), weights(other))
    assert [epoch.train_loss for epoch in one.history] == [epoch.train_loss for epoch in other.history]
    assert one.history != other.history


@pytest.mark.parametrize("recipe", [CHAPTER, DEFAULT], ids=["chapter", "default"])
def test_training_lowers_the_loss(recipe: Recipe) -> None:
    fit = begin(replace(recipe, epochs=15, initial_std=None), train=striped(600), held_out=striped(100, seed=1))
    before = evaluate_loss(fit.network, fit.held_out)
    history = [fit.run_epoch() for _ in range(15)]
    assert history[-1].train_loss < history[0].train_loss
    assert history[-1].held_out_loss < before[0] / 2
    assert history[-1].held_out_accuracy > 0.9


def test_the_training_figures_are_means_over_all_images() -> None:
    # At learning rate 0 and without dropout, the epoch's figures are those of the initial network.
    train = striped(100)
    recipe = replace(CHAPTER, architecture=WITHOUT_DROPOUT, learning_rate=0.0, initial_std=None, masks=3)
    fit = begin(recipe, train=train)
    loss, accuracy = plain_loss_and_accuracy(fit.network, train)
    epoch = fit.run_epoch()
    assert epoch.train_loss == pytest.approx(loss, rel=1e-5)
    assert epoch.train_accuracy == pytest.approx(accuracy)


@pytest.mark.parametrize("recipe", [DEFAULT, CNN], ids=["default", "cnn"])
def test_networks_with_batch_norm_are_averaged_too(recipe: Recipe) -> None:
    last = weights(run(replace(recipe, average_decay=None)))
    torch.testing.assert_close(weights(run(replace(recipe, average_decay=0.0))), last)
    assert not torch.allclose(weights(run(recipe)), last, rtol=0.01)


def test_batch_norm_is_part_of_training_but_not_of_the_result() -> None:
    fit = run(DEFAULT)
    assert any("norm" in name for name in fit.state_dict()["network"])
    assert fit.network.state_dict().keys() == run(CHAPTER).network.state_dict().keys()


@ALL
def test_the_held_out_figures_are_those_of_the_resulting_network(recipe: Recipe) -> None:
    held_out = striped(30, seed=1)
    fit = run(recipe, held_out=held_out)
    loss, accuracy = plain_loss_and_accuracy(fit.network.eval(), held_out)
    assert fit.history[-1].held_out_loss == pytest.approx(loss, rel=1e-5)
    assert fit.history[-1].held_out_accuracy == pytest.approx(accuracy)


def test_the_history_counts_epochs_from_one() -> None:
    fit = begin(CHAPTER)
    returned = [fit.run_epoch() for _ in range(3)]
    assert fit.history == returned
    assert [epoch.epoch for epoch in returned] == [1, 2, 3]


@pytest.mark.parametrize("mode", [True, False])
def test_measure_equals_a_plain_computation_and_leaves_the_mode_alone(
    mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.fit, "_EVALUATION_BATCH", 7)
    images = striped(30)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    expected = plain_loss_and_accuracy(network.eval(), images)
    network.train(mode)
    assert evaluate_loss(network, images) == pytest.approx(expected, rel=1e-5)
    assert {module.training for module in network.modules()} == {mode}


def test_measure_leaves_no_gradient() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    evaluate_loss(network, striped(30))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
