"""Reads the metrics of prefill workers about once a second while a replay runs.

Pages are fetched in threads, so that a slow worker does not make the generator
late. A scrape that fails is counted and leaves a gap; the addresses are then
asked for again, because a worker that was made anew has another one.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from http.client import HTTPException

from stream2llm.serving.own_http import open_url
from stream2llm.workload.records import Sample
from stream2llm.workload.replay.metrics import Page, increase, sample_of

FindUrls = Callable[[], Awaitable[Sequence[str]]]
_EVERY_S = 1.0
_TIMEOUT_S = 5.0
# What fetching a page may raise: no connection, no HTTP, no text, no metrics.
_FAILURES = (OSError, HTTPException, ValueError)


class Scraper:
    """Run it as a task, cancel it at the end, then `scrape` once more."""

    def __init__(self, find_urls: FindUrls, elapsed_s: Callable[[], float]) -> None:
        self._find_urls = find_urls
        self._elapsed_s = elapsed_s
        self._urls: Sequence[str] = ()
        self._last: dict[str, dict[str, float]] = {}
        self._gained: dict[str, float] = defaultdict(float)
        self._num_failed = 0
        self.samples: list[Sample] = []
        # The scheduling policy of the workers, "" as long as it is unknown.
        self.policy = ""

    async def run(self) -> None:
        """Scrapes until it is cancelled."""
        while True:
            await self.scrape()
            await asyncio.sleep(_EVERY_S)

    async def scrape(self) -> None:
        """One look at all workers; all of them or none."""
        try:
            if not self._urls:
                self._urls = await self._find_urls()
            at_s = self._elapsed_s()
            fetched = await asyncio.gather(*(asyncio.to_thread(_fetch, url) for url in self._urls))
            self._take(at_s, [Page(text) for text in fetched])
        except _FAILURES:
            self._num_failed += 1
            self._urls = ()

    def counters(self) -> dict[str, float]:
        """What was counted from the first scrape to the last; only what was there to count."""
        failed = {"scrapes_failed": float(self._num_failed)} if self._num_failed else {}
        return {**self._gained, **failed}

    def _take(self, at_s: float, pages: Sequence[Page]) -> None:
        for url, page in zip(self._urls, pages, strict=True):
            # What a worker counted before its first scrape is not this run's.
            before = self._last.get(url, page.counters)
            for name, gained in increase(before, page.counters).items():
                self._gained[name] += gained
            self._last[url] = dict(page.counters)
            self.policy = page.policy or self.policy
        sample = sample_of(at_s, pages)
        if sample is not None:
            self.samples.append(sample)


async def expanded(urls: Sequence[str]) -> list[str]:
    """Addresses and service discoveries as URLs of metrics pages; raises OSError or ValueError."""
    found = await asyncio.gather(*(asyncio.to_thread(_expanded, metrics_url(url)) for url in urls))
    return [url for part in found for url in part]


def metrics_url(address: str) -> str:
    """HOST:PORT as the URL of its metrics; a whole URL stays what it is."""
    url = address if "://" in address else f"http://{address}"
    has_path = "/" in url.split("://", 1)[1].rstrip("/")
    return url if has_path else f"{url.rstrip('/')}/metrics"


def _expanded(url: str) -> list[str]:
    """A service discovery, such as the controller's /sd, stands for its prefill workers."""
    if not url.endswith("/sd"):
        return [url]
    groups = json.loads(_fetch(url))
    try:
        prefill = [group for group in groups if group.get("labels", {}).get("role") == "prefill"]
        return [metrics_url(target) for group in prefill for target in group["targets"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{url} is no service discovery: {error!r}") from error


def _fetch(url: str) -> str:
    with open_url(url, _TIMEOUT_S) as response:
        text: str = response.read().decode()
        return text
