"""Work that takes too long, or that no client waits for."""

import asyncio

import httpx
import numpy as np
from application import BASE_URL, application, client_of
from files import npy, npy_request
from two_models import Served

UNLIMITED = {"MCD_MAX_IMAGES": "20000", "MCD_MAX_FORWARD_PASSES": "100000000"}


def black(served: Served, count: int) -> np.ndarray:
    """Images; 7,000 of them take half a minute and more with a thousand masks."""
    return np.zeros((count, *served.artifact.input.pixel_shape), np.uint8)


def test_work_beyond_the_deadline_ends(served):
    with client_of(MCD_MAX_SECONDS="0.01", **UNLIMITED, **served.settings) as client:
        late = npy_request(black(served, 5000)) | {"params": {"method": served.methods[-1]}}
        response = client.post("/predict_batch", **late)
        assert (response.status_code, response.json()["type"]) == (504, "urn:mcd:problem:deadline-exceeded")


def test_requests_are_answered_after_one_beyond_its_deadline(served):
    with client_of(MCD_MAX_SECONDS="0.5", **UNLIMITED, **served.settings) as client:
        late = npy_request(black(served, 7000)) | {"params": {"samples": 1000}}
        assert client.post("/predict_batch", **late).status_code == 504
        assert client.post("/predict_batch", **npy_request(black(served, 2))).status_code == 200


def test_work_ends_when_the_client_disconnects(served):
    """The next batch waits for the same thread: it is answered once the work has ended."""
    endless = npy(black(served, 7000))

    async def scenario() -> tuple[httpx.Response, str]:
        with application(MCD_MAX_SECONDS="1000", **UNLIMITED, **served.settings) as app:
            is_gone, messages = asyncio.Event(), [{"type": "http.request", "body": endless, "more_body": False}]

            async def receive() -> dict:
                if messages:
                    return messages.pop()
                await is_gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: dict) -> None:
                raise AssertionError(message)  # nobody is left to answer

            scope = {
                "type": "http", "method": "POST", "path": "/predict_batch", "query_string": b"samples=1000",
                "headers": [(b"content-type", b"application/x-npy")],
            }  # fmt: skip
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL) as client:
                abandoned = asyncio.create_task(app(scope, receive, send))
                while "mcd_http_requests_in_progress 2.0" not in (await client.get("/metrics")).text:
                    assert not abandoned.done()
                is_gone.set()
                await abandoned
                response = await client.post("/predict_batch", **npy_request(black(served, 2)))
                return response, (await client.get("/metrics")).text

    response, metrics = asyncio.run(scenario())
    assert response.status_code == 200
    assert 'code="499",method="POST",route="/predict_batch"} 1.0' in metrics
