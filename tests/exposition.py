"""What the service exposes to Prometheus, and traffic that reaches every route."""

from collections.abc import Callable, Sequence

import httpx
import numpy as np
from files import npy_request
from prometheus_client.parser import text_string_to_metric_families
from server import ROOT

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
Samples = dict[tuple, float]
_PAGES = (
    "/", "/livez", "/readyz", "/healthz", "/schema.json", "/docs.json", "/v2", "/v2/models/mcd", "/metrics",
    "/card.json", "/ui", "/ui/main.js",
)  # fmt: skip


def scrape(client: httpx.Client) -> Samples:
    """Each sample by name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {key(sample.name, **sample.labels): sample.value for family in families for sample in family.samples}


def key(name: str, **labels: str) -> tuple:
    return (name, *sorted(labels.items()))


def difference(before: Samples, after: Samples) -> Callable[..., float]:
    """By how much a sample has grown."""

    def grown(name: str, **labels: str) -> float:
        return after[key(name, **labels)] - before[key(name, **labels)]

    return grown


def infer_request(images_B: np.ndarray) -> dict:
    tensor = {"name": "image", "shape": images_B.shape, "datatype": "UINT8", "data": images_B.ravel().tolist()}
    return {"inputs": [tensor], "parameters": {"samples": 10}}


def send_mixed_traffic(
    client: httpx.Client, shape: Sequence[int] = (28, 28), methods: Sequence[str] = ("masks", "moments")
) -> None:
    """Send good and bad requests, with images of a shape, to every route but the administration's."""
    images_B = np.random.default_rng(3).integers(0, 256, (4, *shape), dtype=np.uint8)
    by_method = ({"method": method} for method in methods)
    for params in ({}, {"samples": 30}, {"samples": "auto"}, *by_method, {"samples": 5}, {"coverage": 0.99}):
        assert client.post("/predict", content=BOOT, params=params).status_code == 200
        assert client.post("/predict_batch", params=params, **npy_request(images_B)).status_code == 200
    assert client.post("/rank", **npy_request(images_B)).status_code == 200
    assert client.post("/v2/models/mcd/infer", json=infer_request(images_B[:1])).status_code == 200
    assert client.post("/v2/models/mcd/versions/1/infer", json=infer_request(images_B[:1])).status_code == 200
    for path in _PAGES:
        assert client.get(path).status_code == 200
        assert client.head(path).status_code in {200, 405}
    client.get("/static_content/swagger-ui.css")
    assert client.get("/ui", headers={"If-None-Match": "*"}).status_code == 304
    assert client.get("/ui/").status_code == 308
    assert client.get("/ui/other").status_code == 404
    for request in ({"content": b"x"}, {"content": BOOT, "params": {"samples": 1}}, {"json": []}, {"content": b""}):
        assert client.post("/predict", **request).status_code in {415, 422}
    assert client.post("/predict", content=BOOT, params={"seed": "0" * 9000}).status_code == 414
    assert client.post("/predict", content=BOOT, headers={"X": "x" * 20_000}).status_code == 431
    assert client.post("/feedback", json={"request_id": "unknown", "class_index": 0}).status_code == 404
    for method, path in (("PROPFIND", "/coffee"), ("DELETE", "/predict"), ("POST", "/"), ("PUT", "/static_content/x")):
        assert client.request(method, path).status_code in {404, 405}
