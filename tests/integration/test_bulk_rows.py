"""The rows of bulk scoring against the answers of a real server."""

import numpy as np
import pyarrow as pa
import pytest
from files import encoded, png
from PIL import Image

from service.bulk.inputs.source import IMAGES
from service.bulk.scoring import ROWS, Scorer
from service.inference.limits import ImageLimits
from service.schemas.parameters import Parameters

FIELDS = ("label", "class_index", "confidence", "probabilities", "predictive_entropy", "prediction_set", "abstain",
          "abstain_reason", "warnings", "samples", "seed")  # fmt: skip


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"samples": 100, "seed": 3},
        {"method": "moments"},
        {"samples": "auto", "max_samples": 300, "coverage": 0.99, "max_risk": 0.01},
    ],
)
def test_rows_are_the_answers_of_the_service(served, served_client, asked):
    if asked.get("method", "masks") not in served.methods:
        asked = {"samples": 10, "set_method": "aps"}
    pictures = [png(pixels) for pixels in served.pixels_B]
    noise = np.random.default_rng(0).integers(0, 256, served.artifact.input.pixel_shape, dtype=np.uint8)
    pictures += [encoded(Image.fromarray(noise).resize((90, 60)), kind) for kind in ("JPEG", "WEBP", "PNG")]
    artifact = served.artifact
    score = Scorer(artifact, Parameters.gather(asked.items()), encoded=True, limits=ImageLimits(25_000))
    ids = [str(number) for number in range(len(pictures))]
    found = score(pa.table([ids, pictures, [None] * len(ids)], schema=IMAGES))
    assert found.schema == ROWS
    files = [("images", picture) for picture in pictures]
    answers = served_client.post("/predict_batch", files=files, params=asked).json()["results"]
    for row, answer in zip(found.to_pylist(), answers, strict=True):
        predictive_entropy = (answer["uncertainty"] or row)["predictive_entropy"]
        expected = answer | {"predictive_entropy": predictive_entropy}
        assert {name: row[name] for name in FIELDS} == {name: expected[name] for name in FIELDS}
        for name in ("variance", "standard_error", "expected_entropy", "mutual_information"):
            assert row[name] == (answer["uncertainty"] or {}).get(name)
        assert row["image_hash"] == answer["preprocessing"]["image_hash"]
        assert row["novelty"] == pytest.approx(answer["novelty"]["score"], abs=1e-4)
        assert row["novelty_view"] == answer["novelty"]["view"]
        assert (row["model"], row["error"]) == (artifact.sha256, None)
        assert row["method"] == asked.get("method", "masks")
