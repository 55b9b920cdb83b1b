"""Reads what a running cluster has counted."""

from __future__ import annotations

import json
from collections import Counter

from stream2llm.api.credentials import PLAIN, ClientSecurity
from stream2llm.serving.http.exposition import merged, parse
from stream2llm.serving.http.own_http import open_url


def counted(
    http_address: str, metric: str, label: str, security: ClientSecurity = PLAIN
) -> Counter[str]:
    """A counter so far over all processes of the cluster, by the values of a label."""
    groups = json.loads(_get(f"http://{http_address}/sd", security))
    targets = [target for group in groups for target in group["targets"]]
    pages = (parse(_get(f"http://{target}/metrics", security), (metric,)) for target in targets)
    sums = merged(pages).by_label(metric, label)
    return Counter({value: int(count) for value, count in sums.items()})


def _get(url: str, security: ClientSecurity) -> str:
    with open_url(url, 30, security) as response:
        text: str = response.read().decode()
        return text
