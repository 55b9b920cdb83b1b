"""The metrics reference: the registered metrics, without running their processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tools.reference.markdown import code, one_line, prose, table

_HEADER = ("metric", "type", "labels", "meaning")
# Labels of histogram buckets, and of versions, which change with every release.
_LABELS_WITHOUT_VALUES = {"le", "version"}


class Listing(CollectorRegistry):
    """A registry that also lists its collectors, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """Registers and lists a collector."""
        super().register(collector)
        self.collectors.append(collector)


@dataclass(frozen=True)
class Group:
    """The metrics of one kind of process."""

    title: str
    introduction: str
    registry: Listing = field(default_factory=Listing)


def sections(groups: Iterable[Group]) -> Iterator[str]:
    """Yields one section with a table for each group."""
    for group in groups:
        heading = f"## {group.title}"
        rows = [_row(*found) for found in _distinct(group.registry.collectors).values()]
        yield "\n\n".join([heading, prose(group.introduction), table(_HEADER, rows)])


def _distinct(collectors: Iterable[Collector]) -> dict[str, tuple[Metric, Collector]]:
    """Returns metrics by name; those of several collectors have the samples of all."""
    found: dict[str, tuple[Metric, Collector]] = {}
    for collector in collectors:
        for metric in collector.collect():
            first, _ = found.setdefault(metric.name, (metric, collector))
            if first is not metric:
                first.samples.extend(metric.samples)
    return found


def _row(metric: Metric, collector: Collector) -> tuple[str, ...]:
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    labels = "; ".join(_labels(metric, collector))
    return code(name), metric.type, labels, one_line(metric.documentation)


def _labels(metric: Metric, collector: Collector) -> Iterator[str]:
    """Yields each label, with the values that exist from the start."""
    values: dict[str, dict[str, None]] = {}
    for name in getattr(collector, "_labelnames", ()):
        values[name] = {}
    for sample in metric.samples:
        for name, value in sample.labels.items():
            known = values.setdefault(name, {})
            if name not in _LABELS_WITHOUT_VALUES:
                known[value] = None
    values.pop("le", None)
    for name, known in values.items():
        listing = ", ".join(code(value) for value in known if not value.startswith("<"))
        yield f"{code(name)}: {listing}" if listing else code(name)
