"""The gateway's client of the routers, which change while it lives."""

from __future__ import annotations

import logging
from collections.abc import Callable

from stream2llm.api.errors import UnavailableError
from stream2llm.client import AsyncClient
from stream2llm.serving.settings.worker_spec import ClusterView, can_answer

_log = logging.getLogger(__name__)


class RouterClients:
    """Gives out the client, which requests under way share with later ones."""

    def __init__(self, make_client: Callable[[tuple[str, ...]], AsyncClient]) -> None:
        """`make_client` takes the addresses of at least one router."""
        self._make_client = make_client
        self._addresses: tuple[str, ...] = ()
        # None before the first router.
        self._client: AsyncClient | None = None
        self._has_workers = False

    @property
    def is_serving(self) -> bool:
        """Whether there are routers, and workers that can answer."""
        return bool(self._addresses) and self._has_workers

    def set_view(self, view: ClusterView) -> None:
        """Takes the routers and workers that can be used now."""
        self._has_workers = can_answer(worker.role for worker in view.workers)
        if view.routers == self._addresses:
            return
        self._addresses = view.routers
        if view.routers and self._client is None:
            self._client = self._make_client(view.routers)
        elif view.routers and self._client is not None:
            self._client.set_routers(view.routers)
        _log.info("routers_changed routers=%s", ",".join(view.routers) or "none")

    def present(self) -> AsyncClient:
        """The client of the present routers; raises UnavailableError while there is none."""
        if self._client is None or not self._addresses:
            raise UnavailableError("no router can be used at present", reason="NO_ROUTER")
        return self._client

    async def close(self) -> None:
        """Closes all channels, and ends what still runs on them."""
        self._addresses = ()
        if self._client is not None:
            await self._client.close()
