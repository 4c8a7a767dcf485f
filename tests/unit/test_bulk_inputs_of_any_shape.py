"""Bulk scoring of RGB images: every form of input gives the rows that the service would answer."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files import npy, png
from PIL import Image
from rgb import SPEC
from typer.testing import CliRunner

from model import Artifact, load_artifact
from service.bulk.__main__ import app
from service.bulk.inputs.discovery import open_source
from service.bulk.inputs.source import InputError, Source
from service.bulk.scoring import Scorer
from service.inference.limits import ImageLimits
from service.pipeline import Pipeline, Run
from service.schemas.parameters import Parameters

LIMITS = ImageLimits(10**6)
PARAMETERS = Parameters(samples=10, seed=2)
PIXELS = np.random.default_rng(4).integers(0, 256, (6, *SPEC.pixel_shape), np.uint8)
NONE = pa.array([], pa.string())


@pytest.fixture(scope="module")
def artifact(rgb_folder) -> Artifact:
    return load_artifact(rgb_folder)


def opened(where) -> Source:
    return open_source(str(where), image="image", identifier=None, max_bytes=10_000, spec=SPEC)


def rows_of(source: Source, artifact: Artifact) -> list[dict]:
    scorer = Scorer(artifact, PARAMETERS, encoded=source.encoded, limits=LIMITS)
    return [
        row for shard in source.shards for table in shard.read(NONE, include=False) for row in scorer(table).to_pylist()
    ]


def check(rows: list[dict], artifact: Artifact) -> None:
    pipeline = Pipeline(artifact, LIMITS)
    assert len(rows) == len(PIXELS)
    for row, answer in zip(rows, pipeline.answers(list(PIXELS), PARAMETERS, Run()), strict=True):
        assert row["error"] is None
        assert (row["label"], row["class_index"]) == (answer.label, answer.class_index)
        assert row["probabilities"] == answer.probabilities
        assert row["variance"] == answer.uncertainty.variance
        assert row["image_hash"] == answer.preprocessing.image_hash
        assert row["novelty"] == answer.novelty.score
        assert row["novelty_view"] == answer.novelty.view
        assert row["prediction_set"] == answer.prediction_set


@pytest.mark.parametrize("is_channels_first", [False, True])
def test_an_array_file_has_the_channels_last_or_first(tmp_path, artifact, is_channels_first):
    array = np.ascontiguousarray(np.moveaxis(PIXELS, -1, 1)) if is_channels_first else PIXELS
    (tmp_path / "a.npy").write_bytes(npy(array))
    check(rows_of(opened(tmp_path / "a.npy"), artifact), artifact)
    (tmp_path / "one.npy").write_bytes(npy(array[0]))
    (row,) = rows_of(opened(tmp_path / "one.npy"), artifact)
    assert row["probabilities"] == rows_of(opened(tmp_path / "a.npy"), artifact)[0]["probabilities"]


@pytest.mark.parametrize("form", ["last", "first", "flat", "ragged"])
@pytest.mark.parametrize("in_unit_range", [False, True])
def test_lists_of_parquet_are_images(tmp_path, artifact, form, in_unit_range):
    array = {"first": np.moveaxis(PIXELS, -1, 1), "flat": PIXELS.reshape(6, -1)}.get(form, PIXELS)
    values = (array / 255 if in_unit_range else array.astype(int)).tolist()
    if form == "ragged":  # a row with another shape makes the lists irregular
        values.append([[[0.0 if in_unit_range else 0]]])
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet")
    rows = rows_of(opened(tmp_path / "a.parquet"), artifact)
    check(rows[:6], artifact)
    if form == "ragged":
        assert "must have the shape 20 x 24 x 3" in rows[6]["error"]


def test_files_are_prepared_as_by_the_service(tmp_path, artifact):
    large = [np.kron(pixels, np.ones((3, 2, 1), np.uint8)) for pixels in PIXELS]
    for number, pixels in enumerate(large):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    answers = Pipeline(artifact, LIMITS).answers([png(pixels) for pixels in large], PARAMETERS, Run())
    rows = rows_of(opened(tmp_path), artifact)
    assert [row["probabilities"] for row in rows] == [answer.probabilities for answer in answers]


def test_arrays_of_other_shapes_are_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy(PIXELS[:, 1:]))
    with pytest.raises(InputError, match=r"must have uint8 images of shape \(B, 20, 24, 3\) in C order"):
        opened(tmp_path / "a.npy")
    (tmp_path / "a.idx").write_bytes(b"\x00\x00\x08\x03" + bytes(12))
    with pytest.raises(InputError, match="an IDX file has grey images, and this model takes RGB images"):
        opened(tmp_path / "a.idx")


def test_moments_are_refused_before_anything_is_scored(tmp_path, rgb_folder):
    (tmp_path / "a.npy").write_bytes(npy(PIXELS))
    out = tmp_path / "out"
    arguments = [str(tmp_path / "a.npy"), str(out), "--model", str(rgb_folder), "--method", "moments"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "method must be masks with this network: moments need linear layers" in " ".join(result.stderr.split())
    assert not out.exists()
