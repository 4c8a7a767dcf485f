"""Train the view of the novelty score for poses: a small network that tells ordinary images from transformed ones."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from model.chain import Array
from model.network.compile import to_onnx
from model.poses import PoseView
from training.data import Images

EPOCHS = 26
ORDINARY = {
    "mirrored horizontally": True,
    "rotation, degrees": 3.5,
    "shift, pixels": 2.0,
    "scale": [0.93, 1.04],
    "brightness": [0.7, 1.1],
    "blur, standard deviation in pixels": 1.0,
    "noise, standard deviation": 0.1,
    "JPEG quality": 75,
}
# Quantiles of calibration images that get the same score by this view and by the others: this view makes most of the
# false alarms, as poses are what the others don't see.
_HIGH, _HIGH_OF_OTHERS = 0.993, 0.9985
_BATCH, _COVERED = 384, 128
_RATE, _WEIGHT_DECAY, _AVERAGED_STEPS = 4e-3, 0.02, 500
_CHANNELS = 16
_LOST = 0.08  # part of an image's brightness that a cover must hide to count
_KERNEL = 2  # pixels of the blur to either side
_SIDE = 28  # pixels of the images in which lengths are given


def fit_poses(
    train: Images, calibration_images: Images, other_scores_B: Array, *, console: Console, epochs: int = EPOCHS
) -> PoseView:
    """Train the network on training images alone, without their labels, and scale its score by calibration images.

    It learns to tell three kinds of images: ordinary ones, varied within `ORDINARY`; images that are turned by 10 to
    350 degrees, moved by 3 to 8 pixels or reduced to 45 to 82 % of their size; and images of which a rectangle is
    covered.

    Args:
        train: the images to which the main network was fitted.
        calibration_images: images held out of training.
        other_scores_B: scores of the calibration images by the other views.
        console: console for the progress bar.
        epochs: passes over the training images.
    """
    transforms = Transforms(seed=0)
    plain_B, compressed_B = train.inputs_B, _compress(train)

    def draw() -> tuple[tuple[Tensor], Tensor]:
        images_B, kinds_B = transforms.draw_batch(plain_B, compressed_B)
        return (images_B,), kinds_B

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = convolutions(plain_B.shape[1:])
        steps = max(epochs * len(train) // _BATCH, 1)
        network = train_network(network, draw, steps=steps, rate=_RATE, weight_decay=_WEIGHT_DECAY, console=console)
    example_B = plain_B[:2]
    axes = ({0: torch.export.Dim("images")},)
    content = to_onnx(network, (example_B,), axes, ["image"], ["logits"])
    log_odds_B = PoseView(content, 0.0, 1.0, 1.0, ORDINARY).log_odds(calibration_images.inputs_B.numpy())
    return scaled_view(content, log_odds_B, other_scores_B, ORDINARY)


def scaled_view(content: bytes, log_odds_B: Array, other_scores_B: Array, ordinary: Mapping[str, object]) -> PoseView:
    """Scale a trained view by scores of calibration images that its network was not trained with.

    Args:
        content: the network's graph.
        log_odds_B: log-odds of the images.
        other_scores_B: their scores by the other views.
        ordinary: the variations that count as ordinary.
    """
    median, high = np.quantile(log_odds_B, [0.5, _HIGH])
    scaled_high = np.quantile(other_scores_B, _HIGH_OF_OTHERS)
    return PoseView(content, float(median), float(high), float(scaled_high), ordinary)


def train_network(
    network: nn.Module,
    draw: Callable[[], tuple[Sequence[Tensor], Tensor]],
    *,
    steps: int,
    rate: float,
    weight_decay: float,
    console: Console,
) -> nn.Module:
    """Train a network to tell kinds of images, and average its weights over the last 500 steps.

    Args:
        network: from the inputs of a batch to logits of the kinds; it is changed.
        draw: draws a batch: the inputs, and the kinds.
        steps: number of batches.
        rate: highest learning rate.
        weight_decay: of AdamW.
        console: console for the progress bar.

    Returns:
        The average, in eval mode.
    """
    averaged = AveragedModel(network, avg_fn=_average, use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    with Progress(console=console, transient=True) as progress:
        for _ in progress.track(range(steps), description="poses"):
            inputs, kinds_B = draw()
            optimizer.zero_grad()
            functional.cross_entropy(network(*inputs), kinds_B).backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(network)
    return averaged.module.eval()


class Transforms:
    """Draws random variations and transformations of images (B, C, H, W) in [0, 1].

    Lengths are in pixels of an image of 28 x 28, and in proportion for other sizes.

    Args:
        seed: of all that is drawn.
        padding: what comes from outside an image that is turned, moved or reduced: black, or the colour of its edge.
    """

    def __init__(self, seed: int, padding: Literal["zeros", "border"] = "zeros") -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._padding = padding

    def draw_batch(self, plain_B: Tensor, compressed_B: Tensor) -> tuple[Tensor, Tensor]:
        """Draw images and their kinds: 0 ordinary, 1 turned, moved or reduced, 2 covered.

        Args:
            plain_B: training images.
            compressed_B: the same after JPEG compression.
        """

        def some(count: int) -> Tensor:
            index_B = torch.randint(0, len(plain_B), (count,), generator=self._generator)
            chosen_B = self._choose(0.3, plain_B[index_B], compressed_B[index_B])
            return self._choose(0.5, chosen_B, chosen_B.flip(3))

        covered_B, hides_B = self.cover(self.vary(some(_COVERED)))
        parts = [self.vary(some(_BATCH)), self.transform(some(_BATCH)), covered_B[hides_B]]
        return torch.cat(parts), torch.repeat_interleave(torch.tensor([len(part) for part in parts]))

    def vary(self, images_B: Tensor) -> Tensor:
        """Vary images within `ORDINARY`, but for mirroring."""
        count, between = len(images_B), self._between
        moved_B = affine(
            images_B,
            between(count, -3.5, 3.5),
            torch.stack([between(count, -2, 2), between(count, -2, 2)]),
            between(count, 0.93, 1.04),
            self._padding,
        )
        return self._expose(self._choose(0.6, images_B, moved_B))

    def transform(self, images_B: Tensor) -> Tensor:
        """Turn, move or reduce images beyond `ORDINARY`."""
        count, between = len(images_B), self._between
        shares = torch.tensor([0.6, 0.2, 0.08, 0.12])  # turned, moved, both, reduced
        kind_B = torch.multinomial(shares, count, replacement=True, generator=self._generator)
        is_turned_B, is_moved_B = (kind_B == 0) | (kind_B == 2), (kind_B == 1) | (kind_B == 2)
        # Near the right angles, where garments look most like others; just beyond what is ordinary; and any angle.
        right_angle_B = 90.0 * torch.randint(1, 4, (count,), generator=self._generator) + between(count, -12, 12)
        slight_B = between(count, 10, 25) * self._signs(count)
        other_B = torch.where(between(count, 0, 1) < 0.5, slight_B, between(count, 11, 349))
        turned_B = torch.where(between(count, 0, 1) < 0.65, right_angle_B, other_B)
        axis_B = torch.randint(0, 3, (count,), generator=self._generator)  # across, down, both
        shift_2B = torch.stack(
            [
                torch.where(
                    is_moved_B & (axis_B != other), between(count, 3, 8) * self._signs(count), between(count, -2, 2)
                )
                for other in (1, 0)
            ]
        )
        is_reduced_B = (kind_B == 3) | (between(count, 0, 1) < 0.2)
        return self._expose(
            affine(
                images_B,
                torch.where(is_turned_B, turned_B, between(count, -3.5, 3.5)),
                shift_2B,
                torch.where(is_reduced_B, between(count, 0.45, 0.82), between(count, 0.93, 1.04)),
                self._padding,
            )
        )

    def cover(self, images_B: Tensor) -> tuple[Tensor, Tensor]:
        """Cover a rectangle of each image with black or grey.

        Returns:
            The images, and for each whether the rectangle hides enough of its brightness.
        """
        count = len(images_B)
        rows_BH, columns_BW = (
            (torch.arange(size) * (_SIDE / size) - self._between(count, 0, _SIDE)[:, None]).abs() * 2
            <= self._between(count, 5, 18)[:, None]
            for size in images_B.shape[2:]
        )
        hidden_B1HW = (rows_BH[:, :, None] & columns_BW[:, None, :]).unsqueeze(1)
        lost_B = (images_B * hidden_B1HW).sum((1, 2, 3)) / images_B.sum((1, 2, 3)).clamp_min(1e-3)
        is_black_B = self._between(count, 0, 1) < 0.6
        level_B = torch.where(is_black_B, 0.0, self._between(count, 0, 1))
        return torch.where(hidden_B1HW, _each(level_B), images_B), lost_B > _LOST

    def _expose(self, images_B: Tensor) -> Tensor:
        """Change brightness, blur and noise of half of the images."""
        between = self._between

        def brighten(some_B: Tensor) -> Tensor:
            return some_B * _each(between(len(some_B), 0.7, 1.1))

        def blur(some_B: Tensor) -> Tensor:
            return _blur(some_B, between(len(some_B), 0.3, 1.0))

        def add_noise(some_B: Tensor) -> Tensor:
            noise_B = torch.randn(some_B.shape, generator=self._generator)
            return some_B + noise_B * _each(between(len(some_B), 0, 0.1))

        def expose(some_B: Tensor) -> Tensor:
            return self._change(0.25, self._change(0.25, brighten(some_B), blur), add_noise).clamp(0, 1)

        return self._change(0.5, images_B, expose)

    def _change(self, share: float, images_B: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Change so many of the images, at random."""
        is_changed_B = self._between(len(images_B), 0, 1) < share
        if not is_changed_B.any():
            return images_B
        result_B = images_B.clone()
        result_B[is_changed_B] = change(images_B[is_changed_B])
        return result_B

    def _between(self, count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=self._generator) * (high - low) + low

    def _signs(self, count: int) -> Tensor:
        return torch.randint(0, 2, (count,), generator=self._generator) * 2.0 - 1

    def _choose(self, share: float, images_B: Tensor, changed_B: Tensor) -> Tensor:
        """Take so many of the changed images, at random, and of the others the unchanged one."""
        return torch.where(_each(self._between(len(images_B), 0, 1)) < share, changed_B, images_B)


def _each(values_B: Tensor) -> Tensor:
    """One value for all pixels of each image."""
    return values_B[:, None, None, None]


def affine(images_B: Tensor, degrees_B: Tensor, shift_2B: Tensor, scale_B: Tensor, padding: str) -> Tensor:
    """Turn, move and scale images (B, C, H, W) about their centers.

    Args:
        images_B: the images.
        degrees_B: angles.
        shift_2B: shifts to the left and upwards, in 28ths of the sides.
        scale_B: factors of the size.
        padding: what comes from outside an image, see `torch.nn.functional.grid_sample`.
    """
    height, width = images_B.shape[2:]
    radians_B = torch.deg2rad(degrees_B)
    cos_B, sin_B = torch.cos(radians_B) / scale_B, torch.sin(radians_B) / scale_B
    right_B, down_B = shift_2B * 2 / _SIDE
    across_B = torch.stack([cos_B, -sin_B * (height / width), right_B], 1)
    theta_B23 = torch.stack([across_B, torch.stack([sin_B * (width / height), cos_B, down_B], 1)], 1)
    grid = functional.affine_grid(theta_B23, list(images_B.shape), align_corners=False)
    return functional.grid_sample(images_B, grid, padding_mode=padding, align_corners=False)


def _blur(images_B: Tensor, deviation_B: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own standard deviation."""
    count, channels, height, width = images_B.shape
    unit = width / _SIDE
    reach = math.ceil(_KERNEL * unit)
    distance_K = torch.arange(-reach, reach + 1)
    kernel_BK = torch.exp(-(distance_K**2) / (2 * (unit * deviation_B[:, None]) ** 2))
    kernel_BK = (kernel_BK / kernel_BK.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    planes_1BHW = images_B.reshape(1, count * channels, height, width)
    for kernel, padding in ((kernel_BK[:, None, :, None], (reach, 0)), (kernel_BK[:, None, None, :], (0, reach))):
        planes_1BHW = functional.conv2d(planes_1BHW, kernel, padding=padding, groups=count * channels)
    return planes_1BHW.reshape(images_B.shape)


def _compress(images: Images) -> Tensor:
    """Compress and decode images as JPEG files: float32 in [0, 1] of shape (B, 1, H, W)."""
    decoded_BHW = np.empty(images.images_B.shape, np.uint8)
    for index, pixels_HW in enumerate(images.images_B.numpy()):
        file = io.BytesIO()
        Image.fromarray(pixels_HW).save(file, "JPEG", quality=ORDINARY["JPEG quality"])
        decoded_BHW[index] = np.asarray(Image.open(file))
    return Images(torch.from_numpy(decoded_BHW), images.labels_B).inputs_B


def convolutions(shape: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Build a convolutional network from images (B, *shape) to three logits."""
    layers: list[nn.Module] = []
    inputs, *sides = shape
    channels, kernel = _CHANNELS, 5
    for _ in range(3):
        convolution = nn.Conv2d(inputs, channels, kernel, stride=2, padding=kernel // 2)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
        inputs, channels, kernel = channels, 2 * channels, 3
        sides = [math.ceil(side / 2) for side in sides]
    units = inputs * math.prod(sides)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(units, 64), nn.ReLU(), nn.Linear(64, 3))


def _average(average: Tensor, current: Tensor, steps: Tensor) -> Tensor:
    """Average over about the last 500 steps, or all if there were fewer."""
    return average + (current - average) * max(1 / (int(steps) + 1), 1 / _AVERAGED_STEPS)
