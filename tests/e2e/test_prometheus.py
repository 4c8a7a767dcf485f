"""A real Prometheus, with the rules as deployed, scrapes real servers; only its clock runs faster.

`make observe` does it for three minutes of traffic.
"""

import itertools
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
from pathlib import Path

import httpx
import numpy as np
from conftest import missing
from files import npy_request, png
from server import ROOT, free_port, serve
from test_rules import dashboard_expressions

from service.monitoring.metrics import FLUSH_SECONDS

SECONDS = float(os.environ.get("MCD_OBSERVE_SECONDS", "20"))
DEPLOYED = ROOT / "deploy" / "prometheus"
DRIFT = "McdUncertaintyDrift"
_PATIENCE = 30.0


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    url: str

    def ask(self, path: str, **params: str) -> dict:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=30)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        return [(one["metric"], float(one["value"][1])) for one in self.ask("query", query=expression)["result"]]

    def value(self, expression: str) -> float:
        ((_, value),) = self.query(expression)
        return value

    def alerts(self) -> set[tuple[str, str]]:
        return {(one["labels"]["alertname"], one["state"]) for one in self.ask("alerts")["alerts"]}


def waits_for(happens: Callable[[], bool], seconds: float = _PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Scrape and evaluate each second; alerts fire after two."""
    if shutil.which("prometheus") is None:
        missing("prometheus, of Debian's package of that name")
    folder.mkdir()
    for path in DEPLOYED.glob("*.yml"):
        text = path.read_text().replace("localhost:3000", target.removeprefix("http://"))
        text = re.sub(r"(scrape_interval|evaluation_interval): \w+", r"\1: 1s", text)
        (folder / path.name).write_text(re.sub(r"\bfor: \w+", "for: 2s", text))
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
    running = Prometheus(f"http://127.0.0.1:{port}")
    try:
        assert waits_for(lambda: is_up(running)), (folder / "log").read_text()
        yield running
    finally:
        process.terminate()
        process.wait(20)


def is_up(running: Prometheus) -> bool:
    try:
        if httpx.get(f"{running.url}/-/ready").status_code != httpx.codes.OK:  # 503 while it reads its own log
            return False
        return running.query('up{job="mcd"}') != [] and running.value('up{job="mcd"}') == 1
    except httpx.TransportError:
        return False


def rules(running: Prometheus) -> list[dict]:
    return [rule for group in running.ask("rules")["groups"] for rule in group["rules"]]


def test_it_sees_what_was_sent(tmp_path, fashion):
    """Mixed traffic and a killed worker: sums are those of the load, counters never fall, gauges return."""
    pixels_BHW = fashion.test.images_B.numpy()
    kinds = [{}, {"samples": 30}, {"method": "moments"}, {"samples": 100, "max_risk": 0.01}]
    codes: Counter[str] = Counter()
    images = 0
    with (
        serve(tmp_path / "home", MCD_WORKERS="2", MCD_LOG_LEVEL="warning") as server,
        prometheus(tmp_path / "prometheus", server.url) as running,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        end = time.monotonic() + SECONDS
        for turn in itertools.count():
            pixels, params = pixels_BHW[turn % 10_000], kinds[turn % len(kinds)]
            codes[str(client.post("/predict", content=png(pixels), params=params).status_code)] += 1
            images += 1
            if turn % 50 == 0:
                many = npy_request(pixels_BHW[turn % 9000 :][:20]) | {"params": params}
                codes[str(client.post("/predict_batch", **many).status_code)] += 1
                codes[str(client.post("/predict", content=b"none").status_code)] += 1
                told = {"request_id": f"told-{turn}", "class_index": int(fashion.test.labels_B[turn % 10_000])}
                client.post("/predict", content=png(pixels), headers={"X-Request-ID": told["request_id"]})
                assert client.post("/feedback", json=told).status_code == 200
                codes["200"] += 2
                images += 21
            if time.monotonic() > end:
                break
            time.sleep(0.002)
        assert codes.keys() == {"200", "415"}
        time.sleep(2 * FLUSH_SECONDS)
        os.kill(server.worker_pids[0], signal.SIGKILL)  # when nothing is in work, nothing may be lost
        assert waits_for(lambda: len(server.worker_pids) == 2)
        time.sleep(3)
        assert waits_for(lambda: running.value("mcd_workers") == 2 and running.value("mcd_ready") == 1)
        for code, count in codes.items():
            assert running.value(f'sum(mcd_http_requests_total{{method="POST",code="{code}"}})') == count
        assert running.value("sum(mcd_predictions_total)") == images
        assert running.value("mcd_http_requests_in_progress") == 1  # the scrape
        assert running.query("resets(mcd_http_requests_total[1h]) > 0 or resets(mcd_predictions_total[1h]) > 0") == []
        found = rules(running)
        assert {rule["health"] for rule in found} == {"ok"}, found
        assert len(found) >= 20
        assert running.value("mcd:http_request_errors:ratio_rate5m") == 0
        assert waits_for(lambda: {name for name, _ in running.alerts()} <= {"McdWorkerMissing"})  # one evaluation later
        for expression in dashboard_expressions(job="mcd", instance=".+", rate_interval=f"{SECONDS:.0f}s"):
            assert running.query(expression), expression


def test_drift_is_alarmed_of_and_ordinary_traffic_is_not(tmp_path, fashion, mnist):
    """The whole test set three times over; then digits; then the test set turned by a right angle."""
    pixels_BHW = fashion.test.images_B.numpy()
    with (
        serve(tmp_path / "home", MCD_WORKERS="2", MCD_DRIFT_IMAGES="500", MCD_LOG_LEVEL="warning") as server,
        prometheus(tmp_path / "prometheus", server.url) as running,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):

        def send(pixels_BHW: np.ndarray) -> Iterator[set[str]]:
            for start in range(0, len(pixels_BHW), 500):
                request = npy_request(np.ascontiguousarray(pixels_BHW[start : start + 500]))
                assert client.post("/predict_batch", params={"samples": 30}, **request).status_code == 200
                time.sleep(1.2)  # a scrape sees each window
                yield {name for name, _ in running.alerts()}

        for _ in range(3):
            for alerts in send(pixels_BHW):
                assert DRIFT not in alerts
        quiet = running.value('max_over_time(mcd_drift_score{mode="mc",statistic="predictive_entropy"}[10m])')
        assert quiet < 0.1
        for strange_BHW, least in ((mnist, 0.6), (np.rot90(pixels_BHW, axes=(1, 2)), 0.2)):
            assert waits_for(lambda: DRIFT not in {name for name, _ in running.alerts()})
            list(send(strange_BHW[:2000]))
            assert waits_for(lambda: (DRIFT, "firing") in running.alerts())
            score = running.value('mcd_drift_score{mode="mc",statistic="predictive_entropy"}')
            assert score > least
            assert running.value('mcd_drift_p_value{mode="mc",statistic="predictive_entropy"}') < 1e-6
            list(send(pixels_BHW[:1000]))
