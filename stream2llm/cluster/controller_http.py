"""The controller's HTTP: /sd for Prometheus, /metrics, /status, /healthz, /policy, /retry."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stream2llm import __version__
from stream2llm.api.errors import InvalidRequestError, UnavailableError
from stream2llm.cluster.prefill_policy import PolicyState
from stream2llm.cluster.supervision import Fleet, Phase

# A policy request needs about fifty bytes.
MAX_BODY_BYTES = 64 * 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Target(Protocol):
    """A process with metrics."""

    @property
    def worker_id(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def metrics_address(self) -> str: ...


class Policy(Protocol):
    """The scheduling policy of all prefill workers."""

    async def show(self) -> PolicyState: ...
    async def switch(self, policy: str) -> PolicyState: ...


class ControllerMetrics:
    """The controller's own metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        labels = ("worker", "role")
        self._up = Gauge(
            "stream2llm_worker_up",
            "1 while routers use the replica, else 0.",
            labels,
            registry=registry,
        )
        self._restarts = Counter(
            "stream2llm_worker_restarts_total", "Times that a replica was created again.", labels,
            registry=registry,
        )  # fmt: skip
        self._seen: dict[str, int] = {}
        build = Gauge(
            "stream2llm_build_info",
            "Always 1; the label has the version of Stream2LLM.",
            ("version",),
            registry=registry,
        )
        build.labels(__version__).set(1)

    def record(self, fleet: Fleet) -> None:
        """Sets the metrics to the state of the fleet."""
        for replica in fleet.values():
            labels = (replica.name, replica.role)
            self._up.labels(*labels).set(replica.phase is Phase.ADMITTED)
            before = self._seen.get(replica.name, 1)
            self._restarts.labels(*labels).inc(max(0, replica.incarnation - before))
            self._seen[replica.name] = max(before, replica.incarnation)


def service_discovery(targets: Iterable[Target], own_address: str) -> list[dict[str, Any]]:
    """Returns Prometheus HTTP SD: one group per process with metrics, and the controller."""
    found = [(t.metrics_address, t.role, t.worker_id) for t in targets]
    found.append((own_address, "controller", "controller"))
    return [
        {"targets": [address], "labels": {"role": role, "worker": worker}}
        for address, role, worker in found
    ]


class ControllerHttp:
    """Listens between `start` and `close`."""

    def __init__(
        self,
        registry: CollectorRegistry,
        targets: Callable[[], Iterable[Target]],
        status: Callable[[], dict[str, Any]],
        policy: Policy,
        retry: Callable[[str | None], list[str]] = lambda _: [],
    ) -> None:
        """`retry` retries given-up replicas at once, all or one by name; returns the names."""
        self._retry = retry
        self._registry = registry
        self._targets = targets
        self._status = status
        self._policy = policy
        self._runner: web.AppRunner | None = None
        self.address = ""

    async def start(self, host: str, port: int) -> str:
        """Listens; port 0 takes any free one. Returns host:port."""
        app = web.Application(middlewares=[_errors_as_json])
        app.router.add_get("/sd", self._sd)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/status", self._get_status)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/policy", self._get_policy)
        # PUT, which a foreign web page cannot send here without CORS.
        app.router.add_put("/policy", self._put_policy)
        app.router.add_put("/retry", self._put_retry)
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.close()
            raise UnavailableError(
                f"cannot serve the controller's HTTP on {host}:{port}: {error.strerror}"
                " (set controller.http_port to another port, or to 0)",
                reason="PORT_TAKEN",
            ) from error
        self.address = f"{host}:{self._runner.addresses[0][1]}"
        return self.address

    async def close(self) -> None:
        """Stops listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _sd(self, _request: web.Request) -> web.Response:
        return web.json_response(service_discovery(self._targets(), self.address))

    async def _metrics(self, _request: web.Request) -> web.Response:
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _get_status(self, _request: web.Request) -> web.Response:
        return web.json_response(self._status())

    async def _healthz(self, _request: web.Request) -> web.Response:
        """200 when every replica is ready, else 503 with the missing ones."""
        status = self._status()
        return web.json_response({"ready": status["ready"]}, status=200 if status["ready"] else 503)

    async def _get_policy(self, _request: web.Request) -> web.Response:
        return web.json_response(asdict(await self._policy.show()))

    async def _put_policy(self, request: web.Request) -> web.Response:
        """200 with each worker's result; 400 for an unknown policy."""
        policy = _policy_in(await _body_of(request))
        return web.json_response(asdict(await self._policy.switch(policy)))

    async def _put_retry(self, request: web.Request) -> web.Response:
        """200 with the names of retried replicas; 400 for an unknown name."""
        names = self._retry(_name_in(await _body_of(request)))
        return web.json_response({"retried": names})


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Returns errors of a request as JSON, never a bare 500."""
    try:
        return await handler(request)
    except InvalidRequestError as error:
        return _refused(400, error.message, error.reason, error.field)
    except web.HTTPException as error:  # no such path, no such method
        if error.status < 400:
            raise
        text = f"{error.reason}: {request.method} {request.path}"
        allowed = {k: v for k, v in error.headers.items() if k == "Allow"}
        return _refused(error.status, text, "INVALID_REQUEST", headers=allowed)


def _refused(
    status: int,
    message: str,
    reason: str,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    told = {"error": message, "reason": reason, "field": field}
    return web.json_response(told, status=status, headers=headers)


async def _body_of(request: web.Request) -> bytes:
    """Returns the whole body; raises InvalidRequestError if it is too long."""
    body = bytearray()
    async for part in request.content.iter_any():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise InvalidRequestError(
                f"the body is longer than {MAX_BODY_BYTES} bytes", reason="MESSAGE_TOO_LARGE"
            )
    return bytes(body)


def _policy_in(body: bytes) -> str:
    """Returns the name in {"policy": "fcfs"}."""
    policy = _text_in(body, "policy", '{"policy": "fcfs"}')
    if policy is None:
        raise InvalidRequestError('the body must be JSON like {"policy": "fcfs"}', field="policy")
    return policy


def _name_in(body: bytes) -> str | None:
    """Returns the name in {"name": "decode-0"}; None, which means all, for {}."""
    return _text_in(body, "name", '{"name": "decode-0"}')


def _text_in(body: bytes, field: str, example: str) -> str | None:
    """Returns the text under `field` in an object of UTF-8 JSON, None without it.

    Ignores the body's Content-Type. Raises InvalidRequestError with `field` and `example`.
    """
    try:
        value = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is not UTF-8: {error}", field=field) from error
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"the body must be JSON like {example}", field=field)
    text = value.get(field)
    if text is not None and not isinstance(text, str):
        raise InvalidRequestError(f"{field} must be a text", field=field)
    return text
