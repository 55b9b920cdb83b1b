"""Draws a view with rich, without I/O. Fits 80 columns, and any number of lines from 14."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream2llm.cli.numbers import seconds_text
from stream2llm.cli.top.view import QUANTILES, Latency, TenantRow, Usage, View, WorkerRow
from stream2llm.serving.observability.logs import one_line

# Lines beside those of the table's rows: title, table's head, panel, and the last one.
_OTHER_LINES = 12
_STYLES = {"ready": "green", "running": "yellow", "starting": "yellow"}
_MIN_ROWS = 1
# Beside the rows of the tenants' table: the line above it and its head.
_TENANT_LINES = 2


def draw(view: View, controller: str, height: int | None = None) -> RenderableType:
    """Returns one frame; `height` limits the lines, None shows all workers."""
    problems = [row for row in view.workers if row.problem]
    room = None if height is None else max(_MIN_ROWS, height - _OTHER_LINES)
    tenants = view.tenants
    if room is not None:
        # Workers have two thirds of the lines.
        tenants = tenants[: max(0, room // 3 - _TENANT_LINES)]
        room -= len(tenants) + _TENANT_LINES if tenants else 0
    shown_problems = problems if room is None else problems[: max(1, room // 3)]
    shown = view.workers if room is None else _most_telling(view.workers, room, len(shown_problems))
    parts: list[RenderableType] = [_title(view, controller), Text(), _workers(shown)]
    if hidden := len(view.workers) - len(shown):
        parts.append(Text(f"... and {hidden} more, all ready", style="dim"))
    parts += [_problem(row) for row in shown_problems]
    if tenants:
        parts += [Text(), _tenants(tenants, len(view.tenants))]
    return Group(*parts, Text(), _panel(view))


def _most_telling(rows: tuple[WorkerRow, ...], room: int, taken: int) -> tuple[WorkerRow, ...]:
    """As many rows as fit, in their order; those that are not ready before others."""
    num_shown = max(_MIN_ROWS, room - taken - (len(rows) > room - taken))
    ranked = sorted(rows, key=lambda row: row.state == "ready")
    chosen = set(map(id, ranked[:num_shown]))
    return tuple(row for row in rows if id(row) in chosen)


def _title(view: View, controller: str) -> Text:
    if view.controller_problem:
        text = f"{controller}  CONTROLLER GONE, shown as it was last: {view.controller_problem}"
        return _line(text, "bold red")
    ready = f"{view.num_ready} of {len(view.workers)} ready"
    text = f"{controller}  {view.version}  policy {view.policy}  {ready}"
    return _line(text, "bold")


def _workers(rows: Iterable[WorkerRow]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=False)
    for title in ("replica", "state", "node"):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for title in ("inc", "KV used", "run", "wait", "tokens/s"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        name = Text(one_line(row.name))
        state = Text(row.state, style=_STYLES.get(row.state, "red"))
        table.add_row(name, state, Text(one_line(row.node)), *_numbers(row))
    return table


def _numbers(row: WorkerRow) -> tuple[str, ...]:
    held = Usage(row.kv_held or 0.0, row.kv_blocks or 0.0)
    return (
        str(row.incarnation),
        "" if row.kv_blocks is None else f"{_percent(held.share)} of {row.kv_blocks:.0f}",
        _count(row.running),
        _count(row.waiting),
        "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
    )


def _tenants(rows: tuple[TenantRow, ...], num_all: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=False)
    title = "tenant" if len(rows) == num_all else f"tenant ({len(rows)} of {num_all})"
    table.add_column(title, no_wrap=True, overflow="ellipsis")
    for title in ("sessions", "TTFT P50", "P95", "prefill/s", "decode/s", "refused/s"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        latencies = [seconds_text(each) for each in row.ttft.quantiles_s[:2]] or ["", ""]
        rates = (f"{row.prefilled:,.0f}", f"{row.decoded:,.0f}", f"{row.refused:.3g}")
        table.add_row(Text(one_line(row.name)), f"{row.sessions:.0f}", *latencies, *rates)
    return table


def _problem(row: WorkerRow) -> Text:
    return _line(f"{row.name}: {row.problem}", "red")


def _panel(view: View) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold", min_width=9)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for name, value in _panel_lines(view):
        table.add_row(Text(name), Text(value))
    return table


def _panel_lines(view: View) -> Iterable[tuple[str, str]]:
    phases = {phase.replace("_", " "): count for phase, count in view.sessions.items()}
    yield "sessions", _listing(phases, "{:.0f}") or "no router answers"
    yield "TTFT", f"{_latency(view.ttft)} in the last {view.interval_s:.3g} s"
    yield "", f"{_latency(view.ttft_ever)} since the start"
    yield (
        "memory",
        f"KV blocks {', '.join(f'{role} {_usage(use)}' for role, use in view.kv.items()) or 'none'},"
        f" offload {_usage(view.offload_pool)}",
    )
    hits = view.hits
    yield (
        "hits",
        f"prefix cache {_percent(hits.prefix_cache)} of prompt tokens;"
        f" KV prefetched {_percent(hits.prefetched)}, wasted {_percent(hits.wasted)}",
    )
    yield "preempted", _rates(view.preemptions)
    yield "refused", _rates(view.refusals)


def _rates(rates: Mapping[str, float]) -> str:
    return _listing({kind: rate for kind, rate in rates.items() if rate}, "{:.3g}/s") or "none"


def _listing(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{kind} {form.format(value)}" for kind, value in values.items())


def _latency(latency: Latency) -> str:
    if not latency.count:
        return "no first token"
    named = zip(QUANTILES, latency.quantiles_s, strict=True)
    parts = " ".join(f"P{share * 100:g} {seconds_text(value)}" for share, value in named)
    return f"{parts}, {latency.count} sessions"


def _usage(usage: Usage) -> str:
    return f"{_percent(usage.share)} of {usage.total:.0f}" if usage.total else "none"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _line(text: str, style: str) -> Text:
    return Text(one_line(text), style=style, no_wrap=True, overflow="ellipsis")
