"""What a dashboard is made of, and PromQL that many panels share. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["s", "short", "percentunit", "Bps", "bytes", "cps", "none"]
# Seconds of history that a rate looks at; Grafana fills it in.
WINDOW = "$__rate_interval"
# PromQL: the models that are chosen in Grafana.
MODEL = 'model=~"$model"'


@dataclass(frozen=True, slots=True)
class Query:
    """One line, or one family of lines, of a panel."""

    expr: str
    # Grafana's legend format: `{{label}}` is a label's value.
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart. `width` is of Grafana's 24 columns."""

    title: str
    description: str
    unit: Unit
    queries: tuple[Query, ...]
    width: int = 12
    kind: Literal["timeseries", "stat"] = "timeseries"


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One file of deploy/grafana."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The panels of all rows, in order."""
        return tuple(panel for row in self.rows for panel in row.panels)


def panel(title: str, description: str, unit: Unit, *queries: Query) -> Panel:
    """A chart of half the width."""
    return Panel(title, description, unit, queries)


def figure(title: str, description: str, unit: Unit, query: Query) -> Panel:
    """One number in large print."""
    return Panel(title, description, unit, (query,), width=6, kind="stat")


def row(title: str, *panels: Panel) -> Row:
    """Panels under a heading."""
    return Row(title, panels)


def rate(metric: str, by: str = "", where: str = "") -> str:
    """PromQL: the increase of a counter each second, summed over all but the labels `by`."""
    return f"sum{_by(by)} (rate({metric}{_where(where)}[{WINDOW}]))"


def total(metric: str, by: str = "", where: str = "") -> str:
    """PromQL: a gauge summed over all but the labels `by`."""
    return f"sum{_by(by)} ({metric}{_where(where)})"


def else_zero(expr: str) -> str:
    """PromQL: the expression, or 0 while it has no value, as of what only some clusters have."""
    return f"{expr} or vector(0)"


def share(part: str, whole: str) -> str:
    """PromQL: one rate or sum divided by another; no value while the other is 0."""
    return f"{part} / ({whole} > 0)"


def held(by: str, where: str = "") -> str:
    """PromQL: the share of KV blocks that a session or a lease holds."""
    blocks = "stream2llm_kv_blocks"
    return share(total(f"{blocks}_held", by, where), total(blocks, by, where))


def rates(metric: str, by: str, where: str = "", *, or_zero: bool = False) -> Query:
    """The rate of a counter for each value of the labels `by`, which are the legend.

    `or_zero`: a line at 0 while there is no such value.
    """
    expr = rate(metric, by, where)
    return Query(else_zero(expr) if or_zero else expr, _legend(by))


def totals(metric: str, by: str, where: str = "") -> Query:
    """A gauge for each value of the labels `by`, which are the legend."""
    return Query(total(metric, by, where), _legend(by))


def percentiles(
    histogram: str, by: str = "", where: str = "", *, or_zero: bool = False
) -> tuple[Query, ...]:
    """P50, P95 and P99 of a histogram's observations within the window.

    `or_zero`: 0 while there are none.
    """
    labels = f"le, {by}" if by else "le"
    buckets = rate(f"{histogram}_bucket", labels, where)
    zero = " >= 0 or vector(0)" if or_zero else ""  # without observations a quantile is NaN
    return tuple(
        Query(
            f"histogram_quantile({quantile / 100:g}, {buckets}){zero}",
            f"P{quantile} {_legend(by)}".strip(),
        )
        for quantile in (50, 95, 99)
    )


def mean(histogram: str, where: str = "") -> str:
    """PromQL: the mean of a histogram's observations within the window."""
    return share(rate(f"{histogram}_sum", where=where), rate(f"{histogram}_count", where=where))


def _legend(by: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by.split(", ") if label)


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _where(matchers: str) -> str:
    return f"{{{matchers}}}" if matchers else ""
