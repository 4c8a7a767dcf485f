"""Many different requests at once, each of which must be answered as if it were alone."""

import asyncio
import random

import httpx
from files import png
from server import Server
from two_models import Served

_KINDS = [{"samples": n} for n in (0, 2, 10, 100, 300, 1000, "auto")]
_CONNECTIONS = 100
Request = tuple[bytes, dict]


def check_mixed_requests(server: Server, served: Served, count: int) -> None:
    requests = _requests(served, count)
    together = asyncio.run(_send_all(server.url, requests))
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for (image, params), answer in zip(requests, together, strict=True):
            assert client.post("/predict", content=image, params=params).content == answer


def _requests(served: Served, count: int) -> list[Request]:
    rng = random.Random(11)
    kinds = [*_KINDS, *({"method": method} for method in served.methods)]
    requests = []
    for index in range(count):
        pixels = served.pixels_B[rng.randrange(len(served.pixels_B))]
        if index % 10 == 0:  # large enough to be decoded in a thread
            pixels = pixels.repeat(32, axis=0).repeat(32, axis=1)
        requests.append((png(pixels), rng.choice(kinds) | {"seed": rng.randrange(3)}))
    return requests


async def _send_all(url: str, requests: list[Request]) -> list[bytes]:
    limits = httpx.Limits(max_connections=_CONNECTIONS)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        return await asyncio.gather(*(_send(client, image, params) for image, params in requests))


async def _send(client: httpx.AsyncClient, image: bytes, params: dict) -> bytes:
    """Send it again as long as the service refuses it for now, as a client should."""
    while True:
        response = await client.post("/predict", content=image, params=params)
        if response.status_code == 200:
            return response.content
        assert (response.status_code, response.headers["retry-after"]) == (503, "1"), response.text
        await asyncio.sleep(random.random())
