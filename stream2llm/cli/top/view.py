"""Turns two scrapes into the values that are shown: no I/O, and no layout."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import get_args

from stream2llm.api.loopback import host_of
from stream2llm.cli.top import names as metric
from stream2llm.cli.top.scrape import Replica, Scrape
from stream2llm.serving.http.exposition import Page, gained, merged, quantile
from stream2llm.serving.settings.worker_spec import PREFILLING, Role
from stream2llm.workload.replay.metrics import KV_BLOCKS, KV_HELD, PREFILL_SESSIONS, policy_of

QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One replica; None where it does not say, or has no such thing."""

    name: str
    role: str
    state: str
    node: str
    incarnation: int
    kv_held: float | None = None
    kv_blocks: float | None = None
    # prefill, mixed: sessions with tokens to compute, and those short of KV blocks; decode: vLLM's
    # running and waiting requests; router: open sessions.
    running: float | None = None
    waiting: float | None = None
    # prefill: computed; decode: generated; mixed: both; router: sent to clients.
    tokens_per_s: float | None = None
    # Why it is not well.
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Latency:
    """Quantiles in seconds by QUANTILES; empty without observations."""

    count: int
    quantiles_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Blocks used and there, over all workers."""

    used: float
    total: float

    @property
    def share(self) -> float | None:
        """Between 0 and 1; None where there is nothing."""
        return self.used / self.total if self.total else None


@dataclass(frozen=True, slots=True)
class Hits:
    """Shares between 0 and 1 of the last interval; None where nothing happened."""

    # Prompt tokens found in a prefix cache instead of computed.
    prefix_cache: float | None
    # Handed-over KV blocks that decode had before the seal, and fetched ones never used.
    prefetched: float | None
    wasted: float | None


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant of the configuration, or all others together; rates are per second."""

    name: str
    sessions: float
    ttft: Latency
    prefilled: float
    decoded: float
    refused: float


@dataclass(frozen=True, slots=True)
class View:
    """One frame; rates and latencies are of the time between its two scrapes."""

    interval_s: float
    version: str
    policy: str
    controller_problem: str
    workers: tuple[WorkerRow, ...]
    # Empty where the configuration names none. Most work first.
    tenants: tuple[TenantRow, ...]
    sessions: Mapping[str, float]
    ttft: Latency
    # Since the routers started.
    ttft_ever: Latency
    # By role, of those that there are.
    kv: Mapping[Role, Usage]
    offload_pool: Usage
    hits: Hits
    # Per second: by action, and by reason.
    preemptions: Mapping[str, float]
    refusals: Mapping[str, float]

    @property
    def num_ready(self) -> int:
        """Replicas that serve and answer."""
        return sum(row.state == "ready" for row in self.workers)


def view_of(before: Scrape, after: Scrape) -> View:
    """Returns the frame; `before` may be the same scrape, then nothing has happened."""
    seconds = max(after.at_s - before.at_s, 0.0)
    gains = {each.name: _gain(before, after, each) for each in after.replicas}
    routers, prefilling = _of_roles(after, {"router"}), _of_roles(after, PREFILLING)
    gain = merged(gains.values())
    return View(
        interval_s=seconds,
        version=after.version,
        policy=_policy(after),
        controller_problem=after.controller_error.message if after.controller_error else "",
        workers=tuple(_row(each, after, gains[each.name], seconds) for each in after.replicas),
        tenants=_tenants(routers, gain, seconds),
        sessions=routers.by_label(metric.ACTIVE, "phase"),
        ttft=_latency(gain, metric.TTFT),
        ttft_ever=_latency(routers, metric.TTFT),
        kv={role: _kv(_of_roles(after, {role})) for role in _worker_roles(after)},
        offload_pool=_offload(prefilling),
        hits=_hits(gain),
        preemptions=_rates(gain.by_label(metric.PREEMPTIONS, "action"), seconds),
        refusals=_rates(gain.by_label(metric.ERRORS, "reason"), seconds),
    )


def _policy(scrape: Scrape) -> str:
    """The chosen policy, and the workers that follow another one, as after an error in theirs."""
    prefill = [each.name for each in scrape.replicas if each.role in PREFILLING]
    followed = {name: policy_of(scrape.page(name) or Page()) for name in prefill}
    others = {
        name: policy for name, policy in followed.items() if policy not in ("", scrape.policy)
    }
    if not others:
        return scrape.policy
    listing = ", ".join(f"{name}: {policy}" for name, policy in others.items())
    return f"{scrape.policy} (chosen); {listing}"


def _gain(before: Scrape, after: Scrape, replica: Replica) -> Page:
    """What a replica counted meanwhile; a new incarnation counts from zero.

    Nothing for one that gave no page before: what it had counted by then is older.
    """
    now, then = after.page(replica.name), before.page(replica.name)
    if now is None:
        return Page()
    known = {each.name: each.incarnation for each in before.replicas}
    if then is not None and known[replica.name] != replica.incarnation:
        return gained(None, now)
    return gained(then or now, now)


def _worker_roles(scrape: Scrape) -> list[Role]:
    present = {each.role for each in scrape.replicas}
    return [role for role in get_args(Role) if role in present]


def _of_roles(scrape: Scrape, roles: Collection[str]) -> Page:
    pages = (scrape.page(each.name) for each in scrape.replicas if each.role in roles)
    return merged(page for page in pages if page is not None)


def _row(replica: Replica, scrape: Scrape, gain: Page, seconds: float) -> WorkerRow:
    page = scrape.page(replica.name)
    problem = scrape.pages.get(replica.name, "")
    silent = isinstance(problem, str) and bool(problem)
    row = WorkerRow(
        name=replica.name,
        role=replica.role,
        state="no answer" if silent else replica.phase.replace("_", " "),
        node=host_of(replica.metrics_address),
        incarnation=replica.incarnation,
        problem=f"no metrics: {problem}" if silent else replica.reason,
    )
    return row if page is None else _filled(row, page, gain, seconds)


def _filled(row: WorkerRow, page: Page, gain: Page, seconds: float) -> WorkerRow:
    running, waiting, tokens = _LOAD[row.role](page, gain)
    return replace(
        row,
        kv_held=page.sum(KV_HELD),
        kv_blocks=page.sum(KV_BLOCKS),
        running=running,
        waiting=waiting,
        tokens_per_s=tokens / seconds if seconds and tokens is not None else None,
    )


_Load = tuple[float | None, float | None, float | None]


def _router_load(page: Page, gain: Page) -> _Load:
    return page.sum(metric.ACTIVE), None, gain.sum(metric.OUTPUT)


def _prefill_load(page: Page, gain: Page) -> _Load:
    return (
        page.sum(PREFILL_SESSIONS, state="with_work"),
        page.sum(PREFILL_SESSIONS, state="short_of_blocks"),
        gain.sum(metric.PREFILL_TOKENS, kind="computed"),
    )


def _mixed_load(page: Page, gain: Page) -> _Load:
    running, waiting, computed = _prefill_load(page, gain)
    return running, waiting, (computed or 0.0) + (gain.sum(metric.GENERATED) or 0.0)


def _decode_load(page: Page, gain: Page) -> _Load:
    return page.sum(metric.RUNNING), page.sum(metric.WAITING), gain.sum(metric.GENERATED)


def _gateway_load(page: Page, gain: Page) -> _Load:
    return page.sum(metric.REQUESTS_IN_FLIGHT), None, None


_LOAD = {
    "router": _router_load,
    "gateway": _gateway_load,
    "prefill": _prefill_load,
    "decode": _decode_load,
    "mixed": _mixed_load,
}


def _tenants(now: Page, gain: Page, seconds: float) -> tuple[TenantRow, ...]:
    open_now = now.by_label(metric.TENANT_OPEN, "tenant")
    if len(open_now) < 2:
        return ()
    names = (metric.TENANT_PREFILLED, metric.TENANT_DECODED, metric.TENANT_REFUSED)
    rates = [_rates(gain.by_label(name, "tenant"), seconds) for name in names]
    rows = [
        TenantRow(
            name,
            num_sessions,
            _latency(gain.of("tenant", name), metric.TENANT_TTFT),
            *(each.get(name, 0.0) for each in rates),
        )
        for name, num_sessions in open_now.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.prefilled - row.decoded))


def _latency(page: Page, histogram: str) -> Latency:
    buckets = page.buckets(histogram)
    found = [quantile(buckets, share) for share in QUANTILES]
    known = tuple(each for each in found if each is not None)
    return Latency(round(max(buckets.values(), default=0.0)), known)


def _kv(page: Page) -> Usage:
    return Usage(page.sum(KV_HELD) or 0.0, page.sum(KV_BLOCKS) or 0.0)


def _offload(page: Page) -> Usage:
    states = page.by_label(metric.OFFLOAD_POOL, "state")
    return Usage(states.get("used", 0.0), sum(states.values()))


def _hits(gain: Page) -> Hits:
    tokens = gain.by_label(metric.PREFILL_TOKENS, "kind")
    reused = sum(value for kind, value in tokens.items() if kind.startswith("reused"))
    blocks = gain.by_label(metric.HANDOVER_BLOCKS, "when")
    ahead, later = blocks.get("prefetched", 0.0), blocks.get("after_seal", 0.0)
    return Hits(
        prefix_cache=_share(reused, reused + tokens.get("computed", 0.0)),
        prefetched=_share(ahead, ahead + later),
        wasted=_share(blocks.get("wasted", 0.0), ahead + blocks.get("wasted", 0.0)),
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _rates(counts: Mapping[str, float], seconds: float) -> dict[str, float]:
    return {kind: count / seconds for kind, count in counts.items() if seconds}
