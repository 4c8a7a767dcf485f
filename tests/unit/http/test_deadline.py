"""Work that takes too long, or that no client waits for."""

import asyncio

import httpx
import numpy as np
from application import BASE_URL, application, client_of
from files import npy, npy_request


def test_work_beyond_the_deadline_ends():
    with client_of(MCD_MAX_SECONDS="0.01", MCD_MAX_IMAGES="5000") as client:
        late = npy_request(np.zeros((5000, 28, 28), np.uint8)) | {"params": {"method": "moments"}}
        response = client.post("/predict_batch", **late)
        assert (response.status_code, response.json()["type"]) == (504, "urn:mcd:problem:deadline-exceeded")


def test_requests_are_answered_after_one_beyond_its_deadline():
    with client_of(MCD_MAX_SECONDS="0.5", MCD_MAX_IMAGES="20000", MCD_MAX_FORWARD_PASSES="100000000") as client:
        late = npy_request(np.zeros((12_000, 28, 28), np.uint8)) | {"params": {"samples": 1000}}  # a minute and more
        assert client.post("/predict_batch", **late).status_code == 504
        assert client.post("/predict_batch", **npy_request(np.zeros((2, 28, 28), np.uint8))).status_code == 200


def test_work_ends_when_the_client_disconnects(capsys):
    """The next batch waits for the same thread: it is answered once the work has ended."""
    endless = npy(np.zeros((12_000, 28, 28), np.uint8))  # a minute and more

    async def scenario() -> tuple[httpx.Response, str]:
        settings = {"MCD_MAX_IMAGES": "20000", "MCD_MAX_FORWARD_PASSES": "100000000", "MCD_MAX_SECONDS": "1000"}
        with application(**settings) as app:
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
                response = await client.post("/predict_batch", **npy_request(np.zeros((2, 28, 28), np.uint8)))
                return response, (await client.get("/metrics")).text

    response, metrics = asyncio.run(scenario())
    assert response.status_code == 200
    assert 'code="499",method="POST",route="/predict_batch"} 1.0' in metrics
