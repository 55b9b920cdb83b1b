"""Makes the metrics of one component: full names, labels that all of them have, one registry. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

M = TypeVar("M", bound=MetricWrapperBase)


class ByLabel(dict[str, M]):
    """A metric by the value of its last label.

    `Metric.labels` makes texts of its arguments and takes a lock each time, which counts where a
    metric is used for each token.
    """

    def __init__(self, metric: M, *first: str) -> None:
        """`first` are the values of the labels before the last one."""
        super().__init__()
        self._metric = metric
        self._first = first

    def show(self, *values: str) -> None:
        """Shows these as 0 rather than not at all."""
        for value in values:
            self.__missing__(value)

    def __missing__(self, value: str) -> M:
        self[value] = child = self._metric.labels(*self._first, value)
        return child


@dataclass(frozen=True, slots=True)
class MetricMaker:
    """Each name follows `stream2llm_`."""

    registry: CollectorRegistry
    # The first ones of every metric.
    labels: tuple[str, ...] = ()

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Returns the counter, to whose name Prometheus adds `_total`."""
        return Counter(f"stream2llm_{name}", text, (*self.labels, *labels), registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Returns the gauge."""
        return Gauge(f"stream2llm_{name}", text, (*self.labels, *labels), registry=self.registry)

    def histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        """Returns the histogram with these upper bounds of its buckets."""
        name, labels = f"stream2llm_{name}", (*self.labels, *labels)
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
