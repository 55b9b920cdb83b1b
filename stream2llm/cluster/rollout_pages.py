"""The controller's pages for rolling restarts: PUT /rollout and PUT /rollout/stop."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from aiohttp import web

from stream2llm.cluster.http_body import body_of, object_in, seconds_in, texts_in

# Seconds for the turn of one replica, where a request names none.
LIMIT_S = 900.0
_EXAMPLE = '{"names": ["decode-0"], "timeout_s": 30, "limit_s": 900}'


class RollingRestarts(Protocol):
    """Rolling restarts, one at a time."""

    def begin(self, names: Collection[str], drain_s: float | None, limit_s: float) -> list[str]: ...
    def stop(self) -> list[str]: ...


class NothingToRestart:
    """Pages of a cluster without replicas."""

    def begin(self, names: Collection[str], drain_s: float | None, limit_s: float) -> list[str]:
        return []

    def stop(self) -> list[str]:
        return []


class RolloutPages:
    """Handlers."""

    def __init__(self, rolling: RollingRestarts) -> None:
        self._rolling = rolling

    async def begin(self, request: web.Request) -> web.Response:
        """200 with the names in their order, all for {}; 400 for an unknown one, or if one runs."""
        body = object_in(await body_of(request), "names", _EXAMPLE)
        limit_s = seconds_in(body, "limit_s")
        names = self._rolling.begin(
            texts_in(body, "names"),
            seconds_in(body, "timeout_s"),
            LIMIT_S if limit_s is None else limit_s,
        )
        return web.json_response({"rollout": names})

    async def stop(self, request: web.Request) -> web.Response:
        """200 with the names of those that are not replaced."""
        object_in(await body_of(request), "body", "{}")
        return web.json_response({"rollout": self._rolling.stop()})
