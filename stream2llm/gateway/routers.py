"""The gateway's client of the routers: another one when the routers change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stream2llm.api.errors import UnavailableError
from stream2llm.client import AsyncClient
from stream2llm.serving.settings.worker_spec import ClusterView, can_answer

_log = logging.getLogger(__name__)


class RouterClients:
    """Gives out a client of the present routers; requests under way keep theirs."""

    def __init__(self, make_client: Callable[[tuple[str, ...]], AsyncClient]) -> None:
        """`make_client` takes the addresses of at least one router."""
        self._make_client = make_client
        self._addresses: tuple[str, ...] = ()
        self._present: _Used | None = None
        # Those of former routers, until their last request ends.
        self._former: set[_Used] = set()
        self._has_workers = False

    @property
    def is_serving(self) -> bool:
        """Whether there are routers, and workers that can answer."""
        return self._present is not None and self._has_workers

    def set_view(self, view: ClusterView) -> None:
        """Takes the routers and workers that can be used now."""
        self._has_workers = can_answer(worker.role for worker in view.workers)
        if view.routers == self._addresses:
            return
        self._addresses = view.routers
        if self._present is not None:
            self._former.add(self._present)
            self._present.retire(self._former.discard)
        self._present = _Used(self._make_client(view.routers)) if view.routers else None
        _log.info("routers_changed routers=%s", ",".join(view.routers) or "none")

    @contextmanager
    def lease(self) -> Iterator[AsyncClient]:
        """A client that stays open meanwhile; raises UnavailableError while there is no router."""
        used = self._present
        if used is None:
            raise UnavailableError("no router can be used at present", reason="NO_ROUTER")
        used.enter()
        try:
            yield used.client
        finally:
            used.leave()

    async def close(self) -> None:
        """Closes all channels, and ends what still runs on them."""
        present = () if self._present is None else (self._present,)
        self._present = None
        for used in (*present, *self._former):
            await used.client.close()


class _Used:
    """One client and its number of requests; closed after the last one once it is retired."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self._num_requests = 0
        self._on_closed: Callable[[_Used], None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def enter(self) -> None:
        self._num_requests += 1

    def leave(self) -> None:
        self._num_requests -= 1
        self._close_if_unused()

    def retire(self, on_closed: Callable[[_Used], None]) -> None:
        self._on_closed = on_closed
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._on_closed is not None and self._num_requests == 0:
            self._closing = asyncio.get_running_loop().create_task(self._close(self._on_closed))

    async def _close(self, on_closed: Callable[[_Used], None]) -> None:
        await self.client.close()
        on_closed(self)
