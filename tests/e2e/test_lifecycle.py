"""Models that are swapped, workers that die, and servers that end, all under load."""

import json
import os
import shutil
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from server import ROOT, Server, serve

from model import MLPConfig, build_mlp
from model.artifact import CARD, FILES, PRETRAINED, save_artifact
from model.examples import FOLDER, MAX_EXAMPLES, file_name

BOOT = (ROOT / "docs" / "images" / "fashion-mnist-ankle-boot.png").read_bytes()
OTHER = ROOT / "training" / "ensemble" / "seed-1"
ADMIN = {"Authorization": "Bearer admin-key"}
ASKED = {"samples": 30}
_KILLS = int(os.environ.get("MCD_KILLS", "2"))
_SWAPS = int(os.environ.get("MCD_SWAPS", "60"))
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; without it, each request would load certificates
_PATIENCE = 300.0  # seconds until what does not come is a failure


def put(source: Path, place: Path) -> None:
    """Copy an artifact file by file, the card last, each whole or not at all."""
    (place / FOLDER).mkdir(exist_ok=True)
    for name in (*(set(FILES) - {CARD}), *map(file_name, range(MAX_EXAMPLES)), CARD):
        if (source / name).exists():
            shutil.copyfile(source / name, place / ".new")
            (place / ".new").replace(place / name)


def spoil(place: Path) -> None:
    """Leave a card that vouches for other weights."""
    (place / "weights.safetensors").write_bytes(b"spoilt")


def asked(url: str) -> bytes:
    response = httpx.post(f"{url}/predict", content=BOOT, params=ASKED, timeout=_PATIENCE, verify=TLS)
    assert response.status_code == 200, response.text
    return response.content


def comes(happens: Callable[[], bool]) -> bool:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if happens():
            return True
        time.sleep(0.05)
    return False


def reload(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/admin/reload", headers=ADMIN, timeout=_PATIENCE, verify=TLS)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """Two workers, and the folder of their model."""
    folder = tmp_path_factory.mktemp("lifecycle")
    place = folder / "model"
    place.mkdir()
    put(PRETRAINED, place)
    settings = {"MCD_MODEL": str(place), "MCD_WORKERS": "2", "MCD_ADMIN_KEYS": "admin-key"}
    with serve(folder / "home", **settings) as server:
        assert comes(lambda: server.log.read_text().count("Service mcd initialized") == 2)
        yield server, place


@pytest.fixture(scope="module")
def original(running: tuple[Server, Path]) -> bytes:
    """The answer of the model that the server started with."""
    return asked(running[0].url)


@pytest.fixture
def swapped(running: tuple[Server, Path], original: bytes) -> tuple[Server, Path]:
    """The same server for each test, with the model that it started with in both workers."""
    server, place = running
    put(PRETRAINED, place)
    assert reload(server).status_code == 200
    assert comes(lambda: answers_of(server) == {original})
    return running


def answers_of(server: Server, count: int = 30) -> set[bytes]:
    """Of both workers, very likely: each request has a connection of its own."""
    return {asked(server.url) for _ in range(count)}


def refusals_of(server: Server) -> int:
    return server.log.read_text().count("model refused")


def test_only_a_valid_model_replaces_the_old_one(swapped):
    server, place = swapped
    (first,) = answers_of(server)
    for headers in ({}, {"X-API-Key": "wrong"}):
        assert httpx.post(f"{server.url}/admin/reload", headers=headers).status_code == 401
    put(OTHER, place)
    assert reload(server).status_code == 200
    assert comes(lambda: first not in answers_of(server))
    (second,) = answers_of(server)
    spoil(place)
    refused = reload(server)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:mcd:problem:model-refused")
    workers, refusals = server.worker_pids, refusals_of(server)
    os.kill(server.pid, signal.SIGHUP)
    assert comes(lambda: refusals_of(server) >= refusals + len(workers))
    assert answers_of(server) == {second}
    put(PRETRAINED, place)
    os.kill(server.pid, signal.SIGHUP)
    assert comes(lambda: answers_of(server) == {first})
    assert server.worker_pids == workers


def test_descriptions_follow_the_model_that_answers(swapped):
    server, place = swapped
    config = MLPConfig(hidden=(8, 6), classes=3)
    save_artifact(place, build_mlp(config), config, {"classes": ["a", "b", "c"]})
    assert reload(server).status_code == 200

    def classes() -> tuple[int, int]:
        outputs = httpx.get(f"{server.url}/v2/models/mcd", verify=TLS).json()["outputs"]
        answered = httpx.get(f"{server.url}/docs.json", verify=TLS).json()["paths"]["/predict"]["post"]["responses"][
            "200"
        ]
        example = answered["content"]["application/json"]["example"]
        return outputs[0]["shape"][-1], len(example["probabilities"])

    assert comes(lambda: {classes() for _ in range(20)} == {(3, 3)})


@contextmanager
def load(url: str, clients: int = 3) -> Iterator[list[httpx.Response | httpx.HTTPError]]:
    """Ask the same again and again, each time on a new connection, until the block ends."""
    got: list[httpx.Response | httpx.HTTPError] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                got.append(httpx.post(f"{url}/predict", content=BOOT, params=ASKED, timeout=_PATIENCE, verify=TLS))
            except httpx.HTTPError as error:
                got.append(error)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield got
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_swaps_under_load_fail_no_answer_and_mix_no_models(swapped):
    server, place = swapped
    before = asked(server.url)
    statuses = []
    with load(server.url) as got:
        for turn in range(2 * _SWAPS):
            if turn % 2:
                spoil(place)
            else:
                put((OTHER, PRETRAINED)[turn // 2 % 2], place)
            statuses.append(reload(server).status_code)
        assert comes(lambda: len(got) > 100)
    assert statuses == [200, 409] * _SWAPS
    put(OTHER, place)
    assert reload(server).status_code == 200
    assert comes(lambda: before not in answers_of(server))
    after = asked(server.url)
    assert {response.status_code for response in got} == {200}
    assert {response.content for response in got} <= {before, after}


def test_a_killed_worker_loses_only_its_own_requests(swapped, original):
    server, _ = swapped
    for _ in range(_KILLS):
        victim = server.worker_pids[0]
        with load(server.url) as got:
            assert comes(lambda got=got: len(got) > 5)
            os.kill(victim, signal.SIGKILL)
            count = len(got)
            assert comes(lambda got=got, count=count: len(got) > count + 20)
        lost = [one for one in got if isinstance(one, httpx.HTTPError)]
        assert len(lost) <= 3  # one for each client
        assert {one.content for one in got if isinstance(one, httpx.Response)} == {original}
        assert comes(lambda victim=victim: len(set(server.worker_pids) - {victim}) == 2)
        assert asked(server.url) == original


def test_a_hangup_does_not_end_a_worker_that_is_starting(swapped):
    server, _ = swapped
    assert comes(lambda: len(server.worker_pids) == 2)
    before = set(server.worker_pids)
    os.kill(server.worker_pids[0], signal.SIGKILL)
    assert comes(lambda: bool(set(server.worker_pids) - before))
    (starting,) = set(server.worker_pids) - before
    ready, loaded = (server.log.read_text().count(text) for text in ("Service mcd initialized", "model loaded"))
    os.kill(server.pid, signal.SIGHUP)
    assert comes(lambda: server.log.read_text().count("Service mcd initialized") > ready)
    assert comes(lambda: server.log.read_text().count("model loaded") > loaded)
    assert starting in server.worker_pids


def test_an_ending_server_answers_what_it_has_accepted(tmp_path):
    with serve(tmp_path / "home", MCD_WORKERS="2") as server:
        workers = [psutil.Process(pid) for pid in server.worker_pids]
        with load(server.url) as got:
            assert comes(lambda: len(got) > 20)
            os.kill(server.pid, signal.SIGTERM)
            psutil.wait_procs(workers, timeout=_PATIENCE)
            time.sleep(0.2)
        assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    answered = [one for one in got if isinstance(one, httpx.Response)]
    assert len(answered) > 20
    assert {one.status_code for one in answered} == {200}
    taken = [line["status"] for line in lines if line.get("route") == "/predict"]
    assert taken == [200] * len(answered)  # what a worker had begun to read
    refused = [one for one in got if isinstance(one, httpx.HTTPError) and not isinstance(one, httpx.ConnectError)]
    assert len(refused) <= 3 * 2  # of each client at each worker, one: connected, and closed before it was read
