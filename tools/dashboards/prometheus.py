"""Questions to a Prometheus over its HTTP API, and what Grafana fills into a query before it asks."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stream2llm.serving.http.own_http import open_url
from tools.dashboards.model import WINDOW

_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Series:
    """One answer of a range query: a line."""

    labels: Mapping[str, str]
    # Seconds since the epoch and values, in order.
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class TimeRange:
    """What a range query looks at, in seconds since the epoch."""

    begin_s: float
    end_s: float
    step_s: float = 1.0


class Prometheus:
    """A running one, at `host:port`. Raises URLError where it is not reached or refuses."""

    def __init__(self, address: str) -> None:
        self._address = address

    def query(self, expr: str) -> list[dict[str, Any]]:
        """An instant query's result: one entry a series, each with its value now."""
        return self._ask("query", query=expr)

    def query_range(self, expr: str, over: TimeRange) -> list[Series]:
        """A range query's result."""
        found = self._ask(
            "query_range", query=expr, start=over.begin_s, end=over.end_s, step=over.step_s
        )
        return [
            Series(each["metric"], [(at_s, float(value)) for at_s, value in each["values"]])
            for each in found
        ]

    def _ask(self, endpoint: str, **parameters: str | float) -> list[dict[str, Any]]:
        url = f"http://{self._address}/api/v1/{endpoint}?{urllib.parse.urlencode(parameters)}"
        with open_url(url, _TIMEOUT_S) as response:
            return list(json.load(response)["data"]["result"])


def filled_in(expr: str) -> str:
    """A dashboard's query as Grafana asks it: rates over a minute, of all models."""
    return expr.replace(WINDOW, "1m").replace("$model", ".*")
