"""Prometheus' rules, their unit tests, the dashboard and the runbook fit the service and one another."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from application import client_of
from conftest import missing
from dashboard import DASHBOARD, EXPRESSIONS, PANELS, dashboard_expressions
from files import npy_request
from prometheus_client.parser import text_string_to_metric_families
from server import ROOT

DEPLOYED = ROOT / "deploy" / "prometheus"
UNIT_TESTS = sorted((DEPLOYED / "tests").glob("*.yml"))
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()


def rules(name: str) -> list[dict]:
    groups = yaml.safe_load((DEPLOYED / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}
RECORDED = {rule["record"]: rule for rule in rules("recording.yml")}


def promtool(*words: str | Path) -> None:
    if shutil.which("promtool") is None:
        missing("promtool, of Debian's package prometheus")
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def families(served_client) -> dict[str, str]:
    """Types of what is exposed, by name; counters with their suffix."""
    found = text_string_to_metric_families(served_client.get("/metrics").text)
    return {family.name + "_total" * (family.type == "counter"): family.type for family in found}


def test_promtool_accepts_configuration_and_rules():
    promtool("check", "config", DEPLOYED / "prometheus.yml")
    promtool("check", "rules", DEPLOYED / "recording.yml", DEPLOYED / "alerts.yml")


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_the_unit_tests_of_the_rules_pass(path):
    promtool("test", "rules", path)


def test_every_alert_is_tested_firing_and_silent():
    tests = [test for path in UNIT_TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    expected = [one for test in tests for one in test.get("alert_rule_test", [])]
    for fires in (True, False):
        assert {one["alertname"] for one in expected if bool(one["exp_alerts"]) == fires} == set(ALERTS)


def check_alerts(client: httpx.Client, path: Path, expected: set[str]) -> None:
    """Compare the alerts that fire if drift and feedback stay as they are."""
    exposed = "up 1\n" + client.get("/metrics").text
    gauges = re.findall(
        r"^(up|mcd_(?:drift|feedback|reference_accuracy)\w*)(?:{(.*)})? (?!NaN)(.*)$", exposed, re.MULTILINE
    )
    series = [
        {"series": f'{name}{{job="mcd", instance="a"{labels and ", "}{labels}}}', "values": f"{value}x60"}
        for name, labels, value in gauges
    ]
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    asked = {"expr": 'group by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "45m", "exp_samples": samples}
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": [asked]}]
    path.write_text(yaml.safe_dump({"rule_files": [str(DEPLOYED / "alerts.yml")], "tests": tests}))
    promtool("test", "rules", path)


def test_drift_and_feedback_of_any_network_raise_the_alerts(served, tmp_path):
    """Images like those of the calibration raise none; then flat ones, and labels by which all answers are wrong."""
    usual_B = served.pixels_B
    levels_B = np.arange(len(usual_B), dtype=np.uint8).reshape(-1, *(1 for _ in usual_B.shape[1:]))
    flat_B = np.broadcast_to(levels_B, usual_B.shape).copy()

    def send(client: httpx.Client, pixels_B: np.ndarray) -> list[dict]:
        for _ in range(3):
            response = client.post("/predict_batch", params={"samples": 30}, **npy_request(pixels_B))
            assert response.status_code == 200, response.text
        return response.json()["results"]

    with client_of(MCD_DRIFT_IMAGES="600", MCD_LOG_LEVEL="error", **served.settings) as client:
        answers = send(client, usual_B)
        check_alerts(client, tmp_path / "usual.yml", expected=set())
        for answer in answers:
            told = {"image_hash": answer["preprocessing"]["image_hash"]}
            told["class_index"] = (answer["class_index"] + 1) % len(served.artifact.classes)
            assert client.post("/feedback", json=told).status_code == 200
        send(client, flat_B)
        check_alerts(client, tmp_path / "other.yml", {"McdUncertaintyDrift", "McdFeedbackAccuracyLow"})


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_runbook_paragraph(name):
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert {"summary", "description"} <= rule["annotations"].keys()
    assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
    paragraph = re.search(rf"^### {name}\n\n(.+?)\n(?:\n|$)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert paragraph
    assert len(paragraph[1]) > 100


def test_the_table_of_metrics_lists_all_that_are_exposed(families):
    rows = re.findall(r"^\| `(mcd_\w+)` \| (\w+) \|", RUNBOOK, re.MULTILINE)
    assert dict(rows) == families
    assert len(rows) == len(families)


def test_labels_in_the_table_are_those_of_the_series(served_client):
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(served_client.get("/metrics").text):
        for sample in family.samples:
            name = family.name + "_total" * (family.type == "counter")
            found.setdefault(name, set()).update(set(sample.labels) - {"le"})
    rows = re.findall(r"^\| `(mcd_\w+)` \| \w+ \| ([\w, ]*) ?\|", RUNBOOK, re.MULTILINE)
    assert {name: {label.strip() for label in labels.split(",")} - {""} for name, labels in rows} == found


def test_rules_and_dashboard_use_existing_metrics(families):
    expressions = [rule["expr"] for rule in (*ALERTS.values(), *RECORDED.values())] + EXPRESSIONS
    suffixed = {name + suffix for name, kind in families.items() if kind == "histogram"
                for suffix in ("_bucket", "_count", "_sum")}  # fmt: skip
    known = suffixed | {name for name, kind in families.items() if kind != "histogram"}
    for expression in expressions:
        assert set(re.findall(r"\bmcd_\w+", expression)) <= known, expression
        assert set(re.findall(r"\bmcd:\w+:\w+", expression)) <= RECORDED.keys(), expression


def test_the_dashboards_expressions_are_promql(tmp_path):
    asked = dashboard_expressions(job="mcd", instance="a", rate_interval="1m")
    found = [{"record": f"dashboard:{number}", "expr": expression} for number, expression in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": found}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


def test_every_panel_has_description_unit_and_place():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for asks in (panel, *panel["targets"]):
            assert asks["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
    cells = itertools.chain.from_iterable(
        itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
        for at in (panel["gridPos"] for panel in DASHBOARD["panels"])
    )
    places = list(cells)
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24


def test_grafana_finds_dashboard_and_data_source():
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "mcd.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "mcd.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert {one["name"] for one in DASHBOARD["templating"]["list"]} == {"datasource", "job", "instance"}
    # Asked for at an import; where the dashboard is provisioned, nothing has that name and Grafana takes the first.
    assert [one["name"] for one in DASHBOARD["__inputs"]] == ["DS_PROMETHEUS"]
    assert DASHBOARD["templating"]["list"][0]["current"]["value"] == "${DS_PROMETHEUS}"
