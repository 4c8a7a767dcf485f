"""What the service answers of transformed images: `python -m training.pose_shifts`.

Some transformations were shown to the view for poses in training; others were not looked at before the view was fixed.
"""

from collections.abc import Callable

import numpy as np
import torch
import typer
from scipy import ndimage

from model import load_artifact
from model.artifact import ArtifactError
from training.data import DataError, Images, load_fashion_mnist
from training.estimates import Estimators, estimate
from training.measure import decide, measure_decisions, ood_scores
from training.shifts import corrupt_images, rotate
from training.tables import FigureTable, format_number
from training.terminal import ArtifactArgument, DataOption, console, exit_with_error
from training.train import METRIC_SAMPLES
from training.vision import functional

Array = np.ndarray

_SHOWN, _ORDINARY, _UNSEEN = "shown in training", "ordinary", "never shown"

app = typer.Typer(add_completion=False)


def _mirror(images: Images) -> Images:
    return Images(images.images_B.flip(1), images.labels_B)


def _dim(images: Images) -> Images:
    return Images((0.7 * images.images_B).round().to(torch.uint8), images.labels_B)


def _squeeze(images: Images) -> Images:
    """Reduce the height to 60 %, and keep the width."""
    side = images.images_B.shape[-1]
    reduced_B = functional.resize(images.images_B, [round(0.6 * side), side])
    above = (side - reduced_B.shape[-2]) // 2
    padding = [0, above, 0, side - above - reduced_B.shape[-2]]
    return Images(functional.pad(reduced_B, padding), images.labels_B)


def _perspective(images: Images) -> Images:
    """See the images from the side: the right edge has half of the height."""
    last = images.images_B.shape[-1] - 1
    corners = [[0, 0], [last, 0], [last, last], [0, last]]
    seen = [[0, 0], [last, last // 4], [last, last - last // 4], [0, last]]
    return Images(functional.perspective(images.images_B, corners, seen), images.labels_B)


def _wave(images: Images) -> Images:
    """Move each row sideways by up to 3 pixels, as a sine of its place."""
    pixels_BHW = images.images_B.numpy().astype(np.float32)
    places_BHW = np.indices(pixels_BHW.shape).astype(np.float32)
    places_BHW[2] += 3 * np.sin(2 * np.pi * places_BHW[1] / pixels_BHW.shape[1])
    bent_BHW = ndimage.map_coordinates(pixels_BHW, places_BHW, order=1)
    return Images(torch.from_numpy(bent_BHW.round().astype(np.uint8)), images.labels_B)


def _turn(degrees: float) -> Callable[[Images], Images]:
    return lambda images: rotate(images, degrees)


def _corrupt(name: str, severity: int) -> Callable[[Images], Images]:
    return lambda images: corrupt_images(images, name, severity)


TRANSFORMATIONS: dict[str, tuple[str, Callable[[Images], Images]]] = {
    "none": (_ORDINARY, lambda images: images),
    "slightly blurred": (_ORDINARY, _corrupt("blur", 1)),
    "slightly noisy": (_ORDINARY, _corrupt("noise", 1)),
    "dimmed to 70 %": (_ORDINARY, _dim),
    **{f"turned by {degrees}°": (_SHOWN, _turn(degrees)) for degrees in (15, 30, 45, 90, 180, 270)},
    "moved by 4 pixels": (_SHOWN, _corrupt("shift", 4)),
    "reduced to 70 %": (_SHOWN, _corrupt("scale", 3)),
    "covered by 8 x 8 pixels": (_SHOWN, _corrupt("occlusion", 2)),
    "covered by 12 x 12 pixels": (_SHOWN, _corrupt("occlusion", 4)),
    "upside down, by a mirror": (_UNSEEN, _mirror),
    "sheared by 15°": (_UNSEEN, _corrupt("shear", 3)),
    "squeezed to 60 % of the height": (_UNSEEN, _squeeze),
    "seen from the side": (_UNSEEN, _perspective),
    "bent to a wave": (_UNSEEN, _wave),
}


@app.command()
def main(
    artifact: ArtifactArgument = None,
    data: DataOption = None,
) -> None:
    """Print which parts of transformed test images the service answers by default, and answers wrongly."""
    torch.set_num_threads(1)
    try:
        loaded, test = load_artifact(artifact), load_fashion_mnist(data).test
    except (DataError, ArtifactError, OSError) as error:
        exit_with_error(str(error))
    estimators, rows = Estimators.of_artifact(loaded), []
    for name, (kind, transform) in TRANSFORMATIONS.items():
        images = transform(test)
        labels_B = images.labels_B.numpy()
        found = estimate(estimators, images, samples=(METRIC_SAMPLES,), seed=0, console=console, label=name)
        decided = decide(
            loaded, found, ood_scores(loaded, images, found, samples=METRIC_SAMPLES), samples=METRIC_SAMPLES
        )
        if decided is None:
            exit_with_error("the artifact has no calibration or no novelty score")
        measured = measure_decisions(decided, found, labels_B, samples=METRIC_SAMPLES)
        wrong = measured["answered"] * measured.get("error", 0.0)
        rows.append([name, kind, *map(format_number, (measured["novel"], measured["answered"], wrong))])
    columns = ["test images", "to the view for poses", "flagged as novel", "answered", "answered wrongly"]
    title = f"Transformed test images: parts of all {len(test):,}"
    note = f"{METRIC_SAMPLES} masks, seed 0; max_risk .05, false_alarm_rate .01"
    console.print(FigureTable(title, columns, rows, note, text_columns=2).as_rich())


if __name__ == "__main__":
    app()
