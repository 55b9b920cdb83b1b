"""What Prometheus would see of a whole cluster."""

from __future__ import annotations

import json
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

from stream2llm.cluster.cluster import Cluster
from stream2llm.serving.http.own_http import open_url


def scrape(cluster: Cluster) -> Counter[str]:
    """All samples of all targets of /sd, summed over their labels."""
    with open_url(f"http://{cluster.http_address}/sd", 30) as response:
        groups = json.load(response)
    total: Counter[str] = Counter()
    for target in (target for group in groups for target in group["targets"]):
        with open_url(f"http://{target}/metrics", 30) as response:
            for family in text_string_to_metric_families(response.read().decode()):
                for sample in family.samples:
                    total[sample.name] += sample.value
                    for label in ("kind", "op", "state", "policy", "action", "direction", "route"):
                        if label in sample.labels:
                            total[f"{sample.name}/{sample.labels[label]}"] += sample.value
    return total
