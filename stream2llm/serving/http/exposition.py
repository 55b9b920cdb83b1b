"""One process's metrics page as numbers, and what its counters gained between two. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Page:
    """The samples of one scrape, by name and labels."""

    samples: Mapping[tuple[str, Labels], float] = field(default_factory=dict)

    def sum(self, name: str, **labels: str) -> float | None:
        """Returns the sum over all samples with these labels; None without any."""
        found = [value for key, value in self.samples.items() if _is(key, name, labels)]
        return sum(found) if found else None

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Returns the sums for each value of a label."""
        sums: dict[str, float] = {}
        for (each, labels), value in self.samples.items():
            if each == name:
                kind = dict(labels).get(label, "")
                sums[kind] = sums.get(kind, 0.0) + value
        return sums

    def of(self, label: str, value: str) -> Page:
        """Returns the samples with this value of a label, and those without the label."""
        kept = {k: v for k, v in self.samples.items() if dict(k[1]).get(label, value) == value}
        return Page(kept)

    def buckets(self, name: str) -> dict[float, float]:
        """Returns a histogram's cumulative counts by upper bound, over all its labels."""
        counts = self.by_label(f"{name}_bucket", "le")
        return {float(bound): count for bound, count in counts.items()}


def _is(key: tuple[str, Labels], name: str, labels: Mapping[str, str]) -> bool:
    return key[0] == name and labels.items() <= dict(key[1]).items()


def parse(text: str, wanted: tuple[str, ...]) -> Page:
    """Returns the samples whose names begin so; raises ValueError for what is no exposition.

    A page of a worker is mostly vLLM's, and a slow parser reads what is left.
    """
    lines = "\n".join(line for line in text.splitlines() if line.startswith(wanted))
    families = text_string_to_metric_families(lines + "\n")
    samples = (sample for family in families for sample in family.samples)
    return Page({(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples})


def gained(before: Page | None, after: Page) -> Page:
    """Returns by how much each sample grew; sensible for counters and histograms only.

    A page with one that fell is of a process that has begun anew: all of it is gain.
    """
    old = {} if before is None else before.samples
    if any(after.samples.get(key, inf) < value for key, value in _counted(old)):
        old = {}
    return Page({key: value - old.get(key, 0.0) for key, value in after.samples.items()})


def _counted(samples: Mapping[tuple[str, Labels], float]) -> list[tuple[tuple[str, Labels], float]]:
    endings = ("_total", "_bucket", "_count", "_sum")
    return [(key, value) for key, value in samples.items() if key[0].endswith(endings)]


def merged(pages: Iterable[Page]) -> Page:
    """Returns the sums over several processes."""
    sums: dict[tuple[str, Labels], float] = {}
    for page in pages:
        for key, value in page.samples.items():
            sums[key] = sums.get(key, 0.0) + value
    return Page(sums)


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Returns the quantile of a histogram, interpolated in its bucket as PromQL does.

    `share` is between 0 and 1. None without observations; the largest finite bound when
    the quantile lies above it.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    return _interpolated(bounds, lambda bound: buckets[bound], share * total)


def _interpolated(bounds: list[float], count: Callable[[float], float], rank: float) -> float:
    lower, below = 0.0, 0.0
    for bound in bounds:
        if count(bound) >= rank and bound != inf:
            inside = count(bound) - below
            return lower + (bound - lower) * ((rank - below) / inside if inside else 1.0)
        if bound != inf:
            lower, below = bound, count(bound)
    return lower
