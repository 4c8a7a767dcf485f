"""Names and paths of the protocol, and the metadata of server and model."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_json

MODEL, VERSION = "mcd", "1"
HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data", "classification"]
SAMPLES = "sample_probabilities"


def documents(outputs: Sequence[Mapping[str, Any]], image_shape: Sequence[int], max_images: int) -> dict[str, bytes]:
    """The metadata documents of server and model, by path.

    Args:
        outputs: name, datatype and shape of each output.
        image_shape: shape of one image, (H, W) or (H, W, 3).
        max_images: maximum number of images of a request.
    """
    server = {"name": MODEL, "version": VERSION, "extensions": EXTENSIONS}
    model = {
        "name": MODEL,
        "versions": [VERSION],
        "platform": "mcd_monte_carlo_dropout",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, *image_shape]}],
        "outputs": list(outputs),
    }
    contents: dict[str, Any] = {
        "/v2": server,
        "/v2/": server,
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"live": True, "ready": True},
        "/v2/models": {"models": [MODEL]},
    }
    for path in model_paths():
        contents[path] = model
        contents[f"{path}/ready"] = {"name": MODEL, "ready": True}
        contents[f"{path}/config"] = {"name": MODEL, "platform": model["platform"], "max_batch_size": max_images}
    return {path: to_json(document) for path, document in contents.items()}


def document_paths() -> list[str]:
    """Paths of all documents."""
    return list(documents([], (), 0))


def model_paths() -> tuple[str, str]:
    """Paths of the model, without and with its version."""
    return f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/{VERSION}"


def is_open_inference(path: str) -> bool:
    """Whether a path belongs to the protocol, whose errors have an additional member."""
    return path == "/v2" or path.startswith("/v2/")
