"""The composition root of a replay: a plan and a cluster become a RunRecord."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from stream2llm.api.credentials import PLAIN, ClientSecurity
from stream2llm.api.tasks import TaskGroup
from stream2llm.client import AsyncClient
from stream2llm.serving.settings.worker_spec import PREFILLING
from stream2llm.serving.system.clock import Clock, SystemClock
from stream2llm.workload.records import RunRecord
from stream2llm.workload.replay.display import Quiet, View
from stream2llm.workload.replay.driver import Driver
from stream2llm.workload.replay.lateness import LagProbe
from stream2llm.workload.replay.plan import PlannedSession
from stream2llm.workload.replay.scrape import FindUrls, Scraper, Warn, expanded, metrics_url
from stream2llm.workload.replay.session import Asking

Helper = Callable[[], Coroutine[Any, Any, None]]
_SHOW_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster, and what is known of the run beforehand."""

    # Routers, host:port; sessions are dealt to them in turn.
    addresses: Sequence[str]
    system: str
    trace: str
    asking: Asking
    # Metrics pages or a controller's /sd. None: those of the prefill workers that the
    # router names. Empty: no metrics.
    metrics_urls: Sequence[str] | None = None
    # For routers and for pages of metrics.
    security: ClientSecurity = PLAIN
    settings: Mapping[str, str | float] = field(default_factory=dict)


async def replay(
    plan: Sequence[PlannedSession],
    target: Target,
    *,
    stop: asyncio.Event | None = None,
    view: View | None = None,
    clock: Clock | None = None,
    warn: Warn = lambda _line: None,
) -> RunRecord:
    """Replays the plan; `stop` ends it early, with a record of what was until then.

    `warn` gets a line if the metrics cannot be read.
    """
    clock, view = clock or SystemClock(), view or Quiet()
    async with AsyncExitStack() as stack:
        stack.callback(view.close)
        clients = [
            await stack.enter_async_context(client_of(address, target.security))
            for address in target.addresses
        ]
        driver = Driver(plan, clients, target.asking, clock)
        probe = LagProbe(clock)
        find = find_urls(clients[0], target.metrics_urls, target.security)
        scraper = Scraper(find, lambda: driver.elapsed_s, target.security, warn)
        with_metrics = target.metrics_urls is None or bool(target.metrics_urls)
        helpers: list[Helper] = [probe.run, lambda: _show(driver, view)]
        if with_metrics:
            await scraper.scrape()  # counters before the first session
            helpers.append(scraper.run)
        async with _beside(helpers):
            await driver.run(stop or asyncio.Event())
        duration_s = driver.elapsed_s
        if with_metrics:
            await scraper.scrape()
    return _record(target, driver, probe, scraper, duration_s)


def client_of(address: str, security: ClientSecurity) -> AsyncClient:
    """A client of one router."""
    return AsyncClient(address, tls=security.tls, token=security.credentials.secret)


@asynccontextmanager
async def _beside(helpers: Sequence[Helper]) -> AsyncIterator[None]:
    """Runs helpers for as long as the block; one that breaks ends the block."""
    async with TaskGroup() as group:
        tasks = [group.create_task(helper()) for helper in helpers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _show(driver: Driver, view: View) -> None:
    while True:
        view.show(driver.snapshot())
        await asyncio.sleep(_SHOW_EVERY_S)


def find_urls(
    client: AsyncClient, given: Sequence[str] | None = None, security: ClientSecurity = PLAIN
) -> FindUrls:
    """Those that were given, or those of the workers that prefill that the client's router names."""

    async def of_router() -> Sequence[str]:
        info = await client.server_info()
        workers = [worker for worker in info.workers if worker.role in PREFILLING]
        addresses = [each.metrics_address for each in workers if each.metrics_address]
        return [metrics_url(address, security) for address in addresses]

    async def of_user() -> Sequence[str]:
        return await expanded(given or (), security)

    return of_router if given is None else of_user


def _record(
    target: Target, driver: Driver, probe: LagProbe, scraper: Scraper, duration_s: float
) -> RunRecord:
    records = driver.records()
    not_opened = driver.snapshot().num_planned - len(records)
    counters = {**scraper.counters(), **probe.counters()}
    if not_opened:
        counters["sessions_not_opened"] = float(not_opened)
    policy = {"policy": scraper.policy} if scraper.policy else {}
    return RunRecord(
        system=target.system,
        trace=target.trace,
        duration_s=duration_s,
        sessions=records,
        samples=tuple(scraper.samples),
        counters=counters,
        settings={**target.settings, **policy},
    )
