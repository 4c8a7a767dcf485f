"""What the deployed Grafana dashboard asks Prometheus."""

import json

from server import ROOT

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "mcd.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def dashboard_expressions(*, job: str, instance: str, rate_interval: str) -> list[str]:
    """Those of all panels, as Grafana would ask them."""
    values = {"$job": job, "$instance": instance, "$__rate_interval": rate_interval}
    asked = []
    for expression in EXPRESSIONS:
        for variable, value in values.items():
            expression = expression.replace(variable, value)  # noqa: PLW2901
        assert "$" not in expression
        asked.append(expression)
    return asked
