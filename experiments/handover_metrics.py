"""Reads a cluster's own metrics: bytes of KV by when they crossed to decode."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from stream2llm.serving.own_http import open_url

_BYTES = "stream2llm_handover_bytes_total"


def bytes_moved(http_address: str) -> Counter[str]:
    """So far, over all workers: "prefetched" and used, "after_seal", "wasted"."""
    total: Counter[str] = Counter()
    for target in _targets(http_address):
        for family in text_string_to_metric_families(_get(f"http://{target}/metrics")):
            for sample in family.samples:
                if sample.name == _BYTES:
                    total[sample.labels["when"]] += int(sample.value)
    return total


def _targets(http_address: str) -> Iterator[str]:
    for group in json.loads(_get(f"http://{http_address}/sd")):
        yield from group["targets"]


def _get(url: str) -> str:
    with open_url(url, 30) as response:
        text: str = response.read().decode()
        return text
