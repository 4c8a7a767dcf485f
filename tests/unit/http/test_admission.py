"""How many requests are accepted at once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TypeVar

import httpx
import numpy as np
from application import BASE_URL, application
from files import npy_request, png
from two_models import Served

SETTINGS = {"MCD_MAX_IN_FLIGHT": "4", "MCD_MAX_BATCHES_IN_FLIGHT": "1", "MCD_MAX_BUFFERED_BYTES": "3000000"}
Result = TypeVar("Result")


def run(served: Served, scenario: Callable[[httpx.AsyncClient], Coroutine[None, None, Result]]) -> Result:
    """Run requests against an application with these settings, in one event loop."""

    async def connected() -> Result:
        with application(**SETTINGS, **served.settings) as app:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL) as client:
                return await scenario(client)

    return asyncio.run(connected())


def large_batch(served: Served) -> dict:
    """Work of several steps, between which other requests are answered or refused."""
    images_B = np.zeros((250, *served.artifact.input.pixel_shape), np.uint8)
    return npy_request(images_B) | {"params": {"samples": 100}}


def test_excess_requests_are_refused_and_accepted_ones_answered(served):
    sent = {"content": png(served.pixels_B[0]), "params": {"samples": 1000}}

    async def scenario(client: httpx.AsyncClient) -> tuple[bytes, list[httpx.Response], bytes]:
        alone = (await client.post("/predict", **sent)).content
        together = await asyncio.gather(*(client.post("/predict", **sent) for _ in range(200)))
        return alone, together, (await client.post("/predict", **sent)).content

    alone, together, afterwards = run(served, scenario)
    answered = [response for response in together if response.status_code == 200]
    refused = [response for response in together if response.status_code == 503]
    assert len(answered) + len(refused) == 200
    assert len(answered) >= 4
    assert len(refused) >= 20
    assert all(response.content == alone for response in answered)
    assert {response.headers["retry-after"] for response in refused} == {"1"}
    assert {response.json()["type"] for response in refused} == {"urn:mcd:problem:overloaded"}
    assert afterwards == alone


def test_batches_have_a_limit_of_their_own(served):
    """While one is computed the next is refused, and single images are answered."""
    batch = large_batch(served)

    async def scenario(client: httpx.AsyncClient) -> tuple[list[int], int]:
        batches = [asyncio.create_task(client.post("/predict_batch", **batch)) for _ in range(3)]
        await asyncio.wait(batches, return_when=asyncio.FIRST_COMPLETED)  # a refusal: one is in work
        single = await client.post("/predict", content=png(served.pixels_B[0]))
        assert not all(one.done() for one in batches)
        return sorted(one.status_code for one in await asyncio.gather(*batches)), single.status_code

    assert run(served, scenario) == ([200, 503, 503], 200)


def test_bytes_of_simultaneous_uploads_are_limited(served):
    async def scenario(client: httpx.AsyncClient) -> tuple[list[int], int]:
        finish = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield bytes(2_000_000)
            await finish.wait()
            yield b"x"

        uploads = [asyncio.create_task(client.post("/predict", content=body())) for _ in range(3)]
        while sum(one.done() for one in uploads) < 2:
            await asyncio.wait([one for one in uploads if not one.done()], return_when=asyncio.FIRST_COMPLETED)
        finish.set()
        statuses = sorted(one.status_code for one in await asyncio.gather(*uploads))
        return statuses, (await client.post("/predict", content=png(served.pixels_B[0]))).status_code

    assert run(served, scenario) == ([415, 503, 503], 200)


def test_metrics_are_served_during_overload(served):
    batch = large_batch(served)

    async def scenario(client: httpx.AsyncClient) -> tuple[list[str], list[int], str]:
        batches = [asyncio.create_task(client.post("/predict_batch", **batch)) for _ in range(24)]
        await asyncio.wait(batches, return_when=asyncio.FIRST_COMPLETED)
        scrapes = [(await client.get("/metrics")).text for _ in range(3)]
        assert not all(one.done() for one in batches)
        codes = [one.status_code for one in await asyncio.gather(*batches)]
        return scrapes, codes, (await client.get("/metrics")).text

    scrapes, codes, last = run(served, scenario)
    assert set(codes) == {200, 503}
    assert f'mcd_requests_rejected_total{{reason="overloaded"}} {codes.count(503)}.0\n' in last
    assert all("\nmcd_workers 1.0\n" in scrape for scrape in scrapes)
