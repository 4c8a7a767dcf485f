"""Train the view of the novelty score for poses: a small network that tells ordinary images from transformed ones."""

import io
import math
from collections.abc import Callable

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
_KERNEL = 2  # pixels to either side


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
    steps = max(epochs * len(train) // _BATCH, 1)
    with torch.random.fork_rng(devices=()), Progress(console=console, transient=True) as progress:
        torch.manual_seed(0)
        network = _build_network(plain_B.shape[-1])
        averaged = AveragedModel(network, avg_fn=_average, use_buffers=True)
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1)
        for _ in progress.track(range(steps), description="poses"):
            images_B, kinds_B = transforms.draw_batch(plain_B, compressed_B)
            optimizer.zero_grad()
            functional.cross_entropy(network(images_B), kinds_B).backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(network)
    example_B = plain_B[:2]
    axes = ({0: torch.export.Dim("images")},)
    content = to_onnx(averaged.module.eval(), (example_B,), axes, ["image"], ["logits"])
    log_odds_B = PoseView(content, 0.0, 1.0, 1.0, ORDINARY).log_odds(calibration_images.inputs_B.numpy())
    median, high = np.quantile(log_odds_B, [0.5, _HIGH])
    scaled_high = np.quantile(other_scores_B, _HIGH_OF_OTHERS)
    return PoseView(content, float(median), float(high), float(scaled_high), ORDINARY)


class Transforms:
    """Draws random variations and transformations of images (B, 1, H, W) in [0, 1].

    Args:
        seed: of all that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

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
        moved_B = _affine(
            images_B,
            between(count, -3.5, 3.5),
            torch.stack([between(count, -2, 2), between(count, -2, 2)]),
            between(count, 0.93, 1.04),
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
            _affine(
                images_B,
                torch.where(is_turned_B, turned_B, between(count, -3.5, 3.5)),
                shift_2B,
                torch.where(is_reduced_B, between(count, 0.45, 0.82), between(count, 0.93, 1.04)),
            )
        )

    def cover(self, images_B: Tensor) -> tuple[Tensor, Tensor]:
        """Cover a rectangle of each image with black or grey.

        Returns:
            The images, and for each whether the rectangle hides enough of its brightness.
        """
        count, size = len(images_B), images_B.shape[-1]
        place = torch.arange(size)
        rows_BH, columns_BW = (
            (place - self._between(count, 0, size)[:, None]).abs() * 2 <= self._between(count, 5, 18)[:, None]
            for _ in range(2)
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


def _affine(images_B: Tensor, degrees_B: Tensor, shift_2B: Tensor, scale_B: Tensor) -> Tensor:
    """Turn, move (in pixels) and scale images about their centers; uncovered pixels are black."""
    radians_B = torch.deg2rad(degrees_B)
    cos_B, sin_B = torch.cos(radians_B) / scale_B, torch.sin(radians_B) / scale_B
    right_B, down_B = shift_2B * 2 / images_B.shape[-1]
    theta_B23 = torch.stack([torch.stack([cos_B, -sin_B, right_B], 1), torch.stack([sin_B, cos_B, down_B], 1)], 1)
    grid = functional.affine_grid(theta_B23, list(images_B.shape), align_corners=False)
    return functional.grid_sample(images_B, grid, align_corners=False)


def _blur(images_B: Tensor, deviation_B: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own standard deviation, in pixels."""
    count, size = len(images_B), images_B.shape[-1]
    distance_K = torch.arange(-_KERNEL, _KERNEL + 1)
    kernel_BK = torch.exp(-(distance_K**2) / (2 * deviation_B[:, None] ** 2))
    kernel_BK = kernel_BK / kernel_BK.sum(1, keepdim=True)
    channels_1BHW = images_B.reshape(1, count, size, size)
    for kernel, padding in ((kernel_BK[:, None, :, None], (_KERNEL, 0)), (kernel_BK[:, None, None, :], (0, _KERNEL))):
        channels_1BHW = functional.conv2d(channels_1BHW, kernel, padding=padding, groups=count)
    return channels_1BHW.reshape(images_B.shape)


def _compress(images: Images) -> Tensor:
    """Compress and decode images as JPEG files: float32 in [0, 1] of shape (B, 1, H, W)."""
    decoded_BHW = np.empty(images.images_B.shape, np.uint8)
    for index, pixels_HW in enumerate(images.images_B.numpy()):
        file = io.BytesIO()
        Image.fromarray(pixels_HW).save(file, "JPEG", quality=ORDINARY["JPEG quality"])
        decoded_BHW[index] = np.asarray(Image.open(file))
    return Images(torch.from_numpy(decoded_BHW), images.labels_B).inputs_B


def _build_network(size: int) -> nn.Sequential:
    """Build a convolutional network from images (B, 1, size, size) to three logits."""
    layers: list[nn.Module] = []
    inputs, channels, kernel = 1, _CHANNELS, 5
    for _ in range(3):
        convolution = nn.Conv2d(inputs, channels, kernel, stride=2, padding=kernel // 2)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
        inputs, channels, kernel, size = channels, 2 * channels, 3, math.ceil(size / 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * size**2, 64), nn.ReLU(), nn.Linear(64, 3))


def _average(average: Tensor, current: Tensor, steps: Tensor) -> Tensor:
    """Average over about the last 500 steps, or all if there were fewer."""
    return average + (current - average) * max(1 / (int(steps) + 1), 1 / _AVERAGED_STEPS)
