"""The alerts of deploy/prometheus as a resource of the Prometheus operator; `make dashboards`."""

from __future__ import annotations

from pathlib import Path

import yaml

_DEPLOY = Path(__file__).parents[1] / "deploy"
ALERTS = _DEPLOY / "prometheus" / "alerts.yaml"
RULE = _DEPLOY / "kubernetes" / "components" / "monitoring" / "alerts.yaml"
_HEAD = "# Made from deploy/prometheus/alerts.yaml by `make dashboards`.\n"


def prometheus_rule() -> str:
    """The text of the PrometheusRule."""
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "stream2llm", "namespace": "stream2llm"},
        "spec": yaml.safe_load(ALERTS.read_text()),
    }
    return _HEAD + yaml.safe_dump(resource, sort_keys=False, width=120)


if __name__ == "__main__":
    RULE.write_text(prometheus_rule())
    print("wrote deploy/kubernetes/components/monitoring/alerts.yaml")
