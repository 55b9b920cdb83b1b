"""Asks the controller for the replicas, and every replica for its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from stream2llm.api.credentials import PLAIN, ClientSecurity
from stream2llm.api.errors import Stream2LLMError, UnavailableError
from stream2llm.cli.addresses import Controller
from stream2llm.cli.top.names import WANTED
from stream2llm.serving.http.exposition import Page, parse
from stream2llm.serving.http.own_http import UNREAD, open_url, why_unread
from stream2llm.serving.system.clock import Clock

_MAX_THREADS = 16
# A worker's page has some hundred KiB; whatever serves more is no worker.
MAX_PAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Replica:
    """A router or worker, as the controller describes it."""

    name: str
    role: str
    # supervision.Phase: missing, starting, ready, dead ...
    phase: str
    incarnation: int
    # host:port; "" while it has none.
    metrics_address: str
    # Why it is not ready.
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Scrape:
    """The controller's status and every replica's metrics at one moment."""

    # Monotonic.
    at_s: float
    version: str = ""
    policy: str = ""
    replicas: tuple[Replica, ...] = ()
    # By replica; the reason where there is no page.
    pages: Mapping[str, Page | str] = field(default_factory=dict)
    # Why the controller gave no status; then the replicas are those it named last.
    controller_error: Stream2LLMError | None = None

    def page(self, name: str) -> Page | None:
        """Returns the replica's metrics; None when it gave none."""
        page = self.pages.get(name)
        return page if isinstance(page, Page) else None


@dataclass(frozen=True, slots=True)
class Asked:
    """The cluster, and how it is asked."""

    # host:port.
    controller: str
    # For the answer of each process.
    timeout_s: float
    clock: Clock
    security: ClientSecurity = PLAIN


def scrape(asked: Asked, before: Scrape | None) -> Scrape:
    """Asks all; a process that gives no answer is in the result with the reason.

    The addresses come from /status, which has those of /sd with each one's incarnation.
    """
    try:
        controller = Controller(asked.controller, asked.security, asked.timeout_s)
        now = described(controller.ask("/status", "replicas"))
    except Stream2LLMError as error:
        now = replace(before or Scrape(0.0), controller_error=error)
    known = [each for each in now.replicas if each.metrics_address]
    if not known:
        return replace(now, at_s=asked.clock.monotonic_s(), pages={})
    with ThreadPoolExecutor(min(_MAX_THREADS, len(known))) as pool:
        pages = pool.map(lambda each: _page(each.metrics_address, asked), known)
        found = {each.name: page for each, page in zip(known, pages, strict=True)}
    return replace(now, at_s=asked.clock.monotonic_s(), pages=found)


def described(status: Mapping[str, Any]) -> Scrape:
    """Returns the controller's /status as values, without pages; UnavailableError: it is none."""
    try:
        replicas = tuple(_replica(each) for each in status["replicas"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnavailableError(f"/status is not a controller's: {error!r}") from error
    return Scrape(0.0, str(status.get("version", "")), str(status.get("policy", "")), replicas)


def _replica(raw: Mapping[str, Any]) -> Replica:
    return Replica(
        name=str(raw["name"]),
        role=str(raw["role"]),
        phase=str(raw["phase"]),
        incarnation=int(raw.get("incarnation", 0)),
        metrics_address=str((raw.get("address") or {}).get("metrics_address", "")),
        reason=str(raw.get("reason", "")),
    )


def _page(address: str, asked: Asked) -> Page | str:
    url = f"{asked.security.scheme}://{address}/metrics"
    try:
        with open_url(url, asked.timeout_s, asked.security) as answer:
            return parse(answer.read(MAX_PAGE_BYTES).decode(), WANTED)
    except Stream2LLMError as error:
        return error.message
    except UNREAD as error:
        return why_unread(error)
