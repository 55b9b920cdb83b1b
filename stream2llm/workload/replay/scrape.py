"""Reads the metrics of prefill workers about once a second while a replay runs.

Pages are fetched in threads, so that a slow worker does not make the generator
late. A scrape that fails is counted and leaves a gap; the addresses are then
asked for again, because a worker that was made anew has another one. If the first
one fails, the run may well have no metrics, which is said at once.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from urllib.error import HTTPError

from stream2llm.api.credentials import PLAIN, ClientSecurity
from stream2llm.api.errors import Stream2LLMError
from stream2llm.serving.http.exposition import Page, gained
from stream2llm.serving.http.own_http import UNREAD, open_url, why_unread
from stream2llm.serving.settings.worker_spec import PREFILLING
from stream2llm.workload.records import Sample
from stream2llm.workload.replay.metrics import counters_of, page_of, policy_of, sample_of

FindUrls = Callable[[], Awaitable[Sequence[str]]]
_EVERY_S = 1.0
_TIMEOUT_S = 5.0
# What fetching a page may raise: it cannot be read, or is refused.
_FAILURES = (*UNREAD, Stream2LLMError)
Warn = Callable[[str], None]


class Scraper:
    """Run it as a task, cancel it at the end, then `scrape` once more."""

    def __init__(
        self,
        find_urls: FindUrls,
        elapsed_s: Callable[[], float],
        security: ClientSecurity = PLAIN,
        warn: Warn = lambda _line: None,
    ) -> None:
        """`warn` gets a line if the first scrape fails."""
        self._security = security
        self._warn = warn
        self._find_urls = find_urls
        self._elapsed_s = elapsed_s
        self._urls: Sequence[str] = ()
        self._last: dict[str, Page] = {}
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
            fetches = (asyncio.to_thread(_fetch, url, self._security) for url in self._urls)
            fetched = await asyncio.gather(*fetches)
            self._take(at_s, [page_of(text) for text in fetched])
        except _FAILURES as error:
            if not self._num_failed and not self._last:
                self._warn(f"no metrics of the prefill workers: {_why(error)} {_WHAT_TO_DO}")
            self._num_failed += 1
            self._urls = ()

    def counters(self) -> dict[str, float]:
        """What was counted from the first scrape to the last; only what was there to count."""
        failed = {"scrapes_failed": float(self._num_failed)} if self._num_failed else {}
        return {**self._gained, **failed}

    def _take(self, at_s: float, pages: Sequence[Page]) -> None:
        for url, page in zip(self._urls, pages, strict=True):
            # What a worker counted before its first scrape is not this run's.
            for name, gain in counters_of(gained(self._last.get(url, page), page)).items():
                self._gained[name] += gain
            self._last[url] = page
            self.policy = policy_of(page) or self.policy
        sample = sample_of(at_s, pages)
        if sample is not None:
            self.samples.append(sample)


_WHAT_TO_DO = "(--no-metrics leaves them out; an API key needs the scope read for them)"


def _why(error: Exception) -> str:
    """Why a scrape failed; what one of our servers refused it with, where one did."""
    if isinstance(error, Stream2LLMError):
        return error.message
    if isinstance(error, HTTPError):
        with error, suppress(ValueError, KeyError, TypeError, OSError):
            return str(json.loads(error.read())["error"])
    return why_unread(error)


async def expanded(urls: Sequence[str], security: ClientSecurity = PLAIN) -> list[str]:
    """Addresses and service discoveries as URLs of metrics pages; raises OSError or ValueError."""
    asked = (asyncio.to_thread(_expanded, metrics_url(url, security), security) for url in urls)
    found = await asyncio.gather(*asked)
    return [url for part in found for url in part]


def metrics_url(address: str, security: ClientSecurity = PLAIN) -> str:
    """HOST:PORT as the URL of its metrics; a whole URL stays what it is."""
    url = address if "://" in address else f"{security.scheme}://{address}"
    has_path = "/" in url.split("://", 1)[1].rstrip("/")
    return url if has_path else f"{url.rstrip('/')}/metrics"


def _expanded(url: str, security: ClientSecurity) -> list[str]:
    """A service discovery, such as the controller's /sd, stands for its workers that prefill."""
    if not url.endswith("/sd"):
        return [url]
    groups = json.loads(_fetch(url, security))
    try:
        prefill = [group for group in groups if group.get("labels", {}).get("role") in PREFILLING]
        return [metrics_url(target, security) for group in prefill for target in group["targets"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{url} is no service discovery: {error!r}") from error


def _fetch(url: str, security: ClientSecurity) -> str:
    with open_url(url, _TIMEOUT_S, security) as response:
        text: str = response.read().decode()
        return text
