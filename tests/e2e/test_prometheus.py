"""A real Prometheus, with the rules as deployed, scrapes a real server; only its clock runs faster.

`make observe` does it for three minutes of traffic.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import missing
from dashboard import dashboard_expressions
from files import npy_request, png
from server import ROOT, Server, free_port, serve

from service.monitoring.metrics import FLUSH_SECONDS
from training.data import FashionMNIST

SECONDS = float(os.environ.get("MCD_OBSERVE_SECONDS", "5"))
DEPLOYED = ROOT / "deploy" / "prometheus"
DRIFT = "McdUncertaintyDrift"
_PATIENCE = 300.0  # seconds until what does not come is a failure
_INTERVAL = "400ms"  # of scrapes and evaluations
_FIRES_AFTER = "1s"
_WINDOW = 500  # images


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    client: httpx.Client

    def ask(self, path: str, **params: str) -> dict:
        response = self.client.get(f"/api/v1/{path}", params=params)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        return [(one["metric"], float(one["value"][1])) for one in self.ask("query", query=expression)["result"]]

    def value(self, expression: str) -> float:
        """Of the only series. It is waited for, as on a loaded machine a scrape may fail, and then there is none."""
        found: list[tuple[dict[str, str], float]] = []
        assert waits_for(lambda: bool(found.extend(self.query(expression)) or found)), expression
        ((_, value),) = found
        return value

    def count(self, expression: str) -> float:
        """A sum of counters, which is none before the first of them is there."""
        return sum(value for _, value in self.query(f"sum(last_over_time({expression}[1h]))"))

    def alerts(self) -> set[tuple[str, str]]:
        return {(one["labels"]["alertname"], one["state"]) for one in self.ask("alerts")["alerts"]}

    def pending_or_firing(self) -> set[str]:
        return {name for name, _ in self.alerts()}

    def wait_for_news(self) -> None:
        """Until what was counted by now is scraped, and the rules are evaluated after that."""
        time.sleep(2 * FLUSH_SECONDS)
        now = time.time()
        assert waits_for(lambda: self.scraped() > now)
        self.wait_for_rules()

    def wait_for_rules(self) -> None:
        """Until the rules are evaluated after the last scrape."""
        scraped = self.scraped()
        assert waits_for(lambda: self.evaluated() > scraped)

    def scraped(self) -> float:
        """When the last scrape was, in seconds of Unix time."""
        return self.value('timestamp(mcd_ready{job="mcd"})')

    def evaluated(self) -> float:
        """When the group of rules was evaluated whose last evaluation is the oldest, in seconds of Unix time."""
        groups = self.ask("rules")["groups"]
        return min(datetime.fromisoformat(_of_microseconds(group["lastEvaluation"])).timestamp() for group in groups)


def _of_microseconds(told: str) -> str:
    """A time of Go, with up to nine decimals, for Python, which takes six."""
    return re.sub(r"(\.\d{1,6})\d*", lambda found: found[1].ljust(7, "0"), told)


def waits_for(happens: Callable[[], bool]) -> bool:
    end = time.monotonic() + _PATIENCE
    while not happens():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Scrape and evaluate twice a second; alerts fire after one."""
    if shutil.which("prometheus") is None:
        missing("prometheus, of Debian's package of that name")
    folder.mkdir()
    for path in DEPLOYED.glob("*.yml"):
        text = path.read_text().replace("localhost:3000", target.removeprefix("http://"))
        text = re.sub(r"(scrape_interval|evaluation_interval): \w+", rf"\1: {_INTERVAL}", text)
        (folder / path.name).write_text(re.sub(r"\bfor: \w+", f"for: {_FIRES_AFTER}", text))
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE) as client:
            running = Prometheus(client)
            assert waits_for(lambda: is_up(running)), (folder / "log").read_text()
            yield running
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def is_up(running: Prometheus) -> bool:
    try:
        if running.client.get("/-/ready").status_code != httpx.codes.OK:  # 503 while it reads its own log
            return False
        return running.query('up{job="mcd"}') != [] and running.value('up{job="mcd"}') == 1
    except httpx.TransportError:
        return False


def rules(running: Prometheus) -> list[dict]:
    return [rule for group in running.ask("rules")["groups"] for rule in group["rules"]]


@dataclass(frozen=True)
class Observed:
    """A server of two workers, a client of it, and the Prometheus that scrapes it."""

    server: Server
    client: httpx.Client
    prometheus: Prometheus


@pytest.fixture(scope="module")
def observed(tmp_path_factory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    settings = {"MCD_WORKERS": "2", "MCD_DRIFT_IMAGES": str(_WINDOW), "MCD_LOG_LEVEL": "warning"}
    with (
        serve(folder / "home", **settings) as server,
        prometheus(folder / "prometheus", server.url) as running,
        httpx.Client(base_url=server.url, timeout=_PATIENCE) as client,
    ):
        yield Observed(server, client, running)


def mixed_traffic(client: httpx.Client, fashion: FashionMNIST) -> tuple[Counter[str], int]:
    """Status codes of what was sent, and the number of images predicted."""
    pixels_BHW = fashion.test.images_B.numpy()
    kinds = [{}, {"samples": 30}, {"method": "moments"}, {"samples": 100, "max_risk": 0.01}]
    codes: Counter[str] = Counter()
    images = 0
    end = time.monotonic() + SECONDS
    turn = 0
    while time.monotonic() < end or turn <= 100:
        pixels, params = pixels_BHW[turn % 10_000], kinds[turn % len(kinds)]
        codes[str(client.post("/predict", content=png(pixels), params=params).status_code)] += 1
        images += 1
        if turn % 50 == 0:
            many = npy_request(pixels_BHW[turn % 9000 :][:_WINDOW]) | {"params": params}
            codes[str(client.post("/predict_batch", **many).status_code)] += 1
            codes[str(client.post("/predict", content=b"none").status_code)] += 1
            feedback = {"request_id": f"told-{turn}", "class_index": int(fashion.test.labels_B[turn % 10_000])}
            client.post("/predict", content=png(pixels), headers={"X-Request-ID": feedback["request_id"]})
            assert client.post("/feedback", json=feedback).status_code == 200
            codes["200"] += 2
            images += _WINDOW + 1
        turn += 1
        time.sleep(0.002)
    return codes, images


def test_counts_are_those_of_the_load(observed: Observed, fashion):
    """Mixed traffic and a killed worker: sums are those of the load, counters never fall, gauges return."""
    server, running = observed.server, observed.prometheus
    posts = {code: f'mcd_http_requests_total{{method="POST",code="{code}"}}' for code in ("200", "415")}
    sums = {**posts, "images": "mcd_predictions_total"}
    running.wait_for_news()
    before = {name: running.count(counters) for name, counters in sums.items()}
    alerts = running.pending_or_firing()
    codes, images = mixed_traffic(observed.client, fashion)
    assert codes.keys() == posts.keys()
    time.sleep(2 * FLUSH_SECONDS)
    victim = server.worker_pids[0]
    os.kill(victim, signal.SIGKILL)  # when nothing is in work, nothing may be lost
    assert waits_for(lambda: len(set(server.worker_pids) - {victim}) == 2)
    assert waits_for(lambda: running.value("mcd_workers") == 2 and running.value("mcd_ready") == 1)
    running.wait_for_news()
    found = {name: running.count(counters) - before[name] for name, counters in sums.items()}
    assert found == {**codes, "images": images}
    assert running.value("mcd_http_requests_in_progress") == 1  # the scrape
    assert running.query("resets(mcd_http_requests_total[1h]) > 0 or resets(mcd_predictions_total[1h]) > 0") == []
    assert {rule["health"] for rule in rules(running)} == {"ok"}, rules(running)
    assert len(rules(running)) >= 20
    assert running.value("mcd:http_request_errors:ratio_rate5m") == 0
    assert waits_for(lambda: running.pending_or_firing() - alerts <= {"McdWorkerMissing"})  # one evaluation later
    for expression in dashboard_expressions(job="mcd", instance=".+", rate_interval="5m"):
        assert waits_for(lambda expression=expression: running.query(expression) != []), expression


def test_drift_raises_an_alert_and_ordinary_traffic_none(observed: Observed, fashion, mnist):
    """The whole test set; then digits; then the test set turned by a right angle."""
    pixels_BHW, running = fashion.test.images_B.numpy(), observed.prometheus

    def send(pixels_BHW: np.ndarray) -> Iterator[set[str]]:
        """Window by window, each seen by a scrape and judged by the rules: what is pending or firing then."""
        running.wait_for_news()
        predicted = "mcd_predictions_total"
        images = running.count(predicted)
        for start in range(0, len(pixels_BHW), _WINDOW):
            request = npy_request(np.ascontiguousarray(pixels_BHW[start : start + _WINDOW]))
            assert observed.client.post("/predict_batch", params={"samples": 30}, **request).status_code == 200
            counted = images + start + len(pixels_BHW[start : start + _WINDOW])
            assert waits_for(lambda counted=counted: running.count(predicted) >= counted)
            running.wait_for_rules()
            yield running.pending_or_firing()

    score = 'mcd_drift_score{mode="mc",statistic="predictive_entropy"}'
    list(send(pixels_BHW[:_WINDOW]))
    begun = time.time()
    for alerts in send(pixels_BHW):
        assert DRIFT not in alerts
        assert running.value(score) < 0.1
    assert running.value(f"max_over_time({score}[{max(1, int(time.time() - begun))}s])") < 0.1
    for strange_BHW, least in ((mnist, 0.6), (np.rot90(pixels_BHW, axes=(1, 2)), 0.2)):
        assert waits_for(lambda: DRIFT not in running.pending_or_firing())
        list(send(strange_BHW[: 2 * _WINDOW]))
        assert waits_for(lambda: (DRIFT, "firing") in running.alerts())
        assert running.value(score) > least
        assert running.value('mcd_drift_p_value{mode="mc",statistic="predictive_entropy"}') < 1e-6
        list(send(pixels_BHW[:_WINDOW]))
