"""The controller's HTTP: /sd for Prometheus, /metrics, /status, /healthz, /policy, /retry, /drain,
/rollout (`rollout_pages`)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stream2llm import __version__
from stream2llm.api.errors import InvalidRequestError, UnavailableError
from stream2llm.api.loopback import host_of
from stream2llm.cluster.http_body import body_of, flag_in, object_in, seconds_in, text_in
from stream2llm.cluster.prefill_policy import PolicyState
from stream2llm.cluster.rollout_pages import NothingToRestart, RollingRestarts, RolloutPages
from stream2llm.cluster.supervision import Fleet, Phase, Replica
from stream2llm.security import http_access
from stream2llm.security.guard import Guard
from stream2llm.security.principal import Scope
from stream2llm.serving.actor.loss import Cause
from stream2llm.serving.http.head_deadline import HEAD_LIMIT_S, HeadDeadline
from stream2llm.serving.observability.metric_maker import MetricMaker

_DRAIN_EXAMPLE = '{"name": "decode-0", "timeout_s": 30, "remove": false}'
# Who may ask for what; what is not listed is for operators.
SCOPES: dict[tuple[str, str], Scope | None] = {
    # For probes, which have no credentials.
    ("GET", "/healthz"): None,
    ("GET", "/sd"): Scope.READ,
    ("GET", "/metrics"): Scope.READ,
    ("GET", "/status"): Scope.READ,
    ("GET", "/policy"): Scope.READ,
    ("PUT", "/policy"): Scope.OPERATOR,
    ("PUT", "/retry"): Scope.OPERATOR,
    ("PUT", "/drain"): Scope.OPERATOR,
    ("PUT", "/rollout"): Scope.OPERATOR,
    ("PUT", "/rollout/stop"): Scope.OPERATOR,
}

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
        of_replicas = MetricMaker(registry, ("worker", "role"))
        self._up = of_replicas.gauge("worker_up", "1 while routers use the replica, else 0.")
        self._given_up = of_replicas.gauge(
            "worker_given_up",
            "1 while the replica failed too often and is retried at intervals only, else 0.",
        )
        self._restarts = of_replicas.counter(
            "worker_restarts", "Times that a replica was created again."
        )
        self._losses = of_replicas.counter(
            "worker_losses",
            "Times that a replica was lost, by cause: died; hung (its engine gave no sign of life);"
            " unresponsive (its process gave none); start_failed.",
            "cause",
        )
        make = MetricMaker(registry)
        self._own_restarts = make.counter(
            "controller_restarts", "Times that the controller of this cluster was started again."
        )
        self._shown: set[tuple[str, str]] = set()
        self._seen: dict[str, int] = {}
        self._lost: dict[str, int] = {}
        build = make.gauge(
            "build_info", "Always 1; the label has the version of Stream2LLM.", "version"
        )
        build.labels(__version__).set(1)

    def took_over(self, num_restarts: int) -> None:
        """This controller is a successor; counters begin at 0 in each."""
        self._own_restarts.inc(num_restarts)

    def record(self, fleet: Fleet) -> None:
        """Sets the metrics to the state of the fleet."""
        for name, role in self._shown - {(r.name, r.role) for r in fleet.values()}:
            self._up.remove(name, role)  # a stand-in that is gone is not down
            self._given_up.remove(name, role)
        self._shown = {(r.name, r.role) for r in fleet.values()}
        for replica in fleet.values():
            labels = (replica.name, replica.role)
            self._up.labels(*labels).set(replica.phase is Phase.ADMITTED)
            self._given_up.labels(*labels).set(replica.phase is Phase.GIVEN_UP)
            for cause in Cause:
                self._losses.labels(*labels, cause)
            before = self._seen.get(replica.name, 1)
            self._restarts.labels(*labels).inc(max(0, replica.incarnation - before))
            self._seen[replica.name] = max(before, replica.incarnation)
            self._count_loss(replica)

    def _count_loss(self, replica: Replica) -> None:
        """Counts the loss of an incarnation once; a drain is none."""
        if replica.phase is not Phase.DEAD or replica.cause is None:
            return
        if self._lost.get(replica.name) != replica.incarnation:
            self._lost[replica.name] = replica.incarnation
            self._losses.labels(replica.name, replica.role, replica.cause).inc()


def service_discovery(
    targets: Iterable[Target], own_address: str, *, has_tls: bool = False
) -> list[dict[str, Any]]:
    """Returns Prometheus HTTP SD: one group per process with metrics, and the controller.

    Label `node` is the address of the process's node.
    """
    scheme = {"__scheme__": "https"} if has_tls else {}
    found = [(t.metrics_address, t.role, t.worker_id) for t in targets]
    found.append((own_address, "controller", "controller"))
    return [
        {
            "targets": [address],
            "labels": {"role": role, "worker": worker, "node": host_of(address), **scheme},
        }
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
        drain: Callable[[str, float | None, bool], list[str]] = lambda *_: [],
        rollout: RollingRestarts = NothingToRestart(),  # noqa: B008 - without a state
        tls: ssl.SSLContext | None = None,
        guard: Guard | None = None,
        head_limit_s: float = HEAD_LIMIT_S,
    ) -> None:
        """`retry` retries given-up replicas at once, all or one by name; returns the names.
        `drain` takes one replica out of use, with the seconds that its sessions have (None: as
        configured) and whether it gets no successor; it returns the name if it was in use.
        `rollout` does that to all, one after the other.

        `tls` makes it HTTPS. Without a `guard` no request needs credentials.
        """
        self._guard = guard
        self._deadline = HeadDeadline(head_limit_s)
        self._tls = tls
        self._retry = retry
        self._drain = drain
        self._rollout = RolloutPages(rollout)
        self._registry = registry
        self._targets = targets
        self._status = status
        self._policy = policy
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self.address = ""

    async def start(self, host: str, port: int) -> str:
        """Listens; port 0 takes any free one. Returns host:port."""
        app = self._app()
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False)
        await self._runner.setup()
        try:
            self._listener = await self._deadline.listen(self._runner, host, port, self._tls)
        except OSError as error:
            await self.close()
            raise UnavailableError(
                f"cannot serve the controller's HTTP on {host}:{port}: {error.strerror}"
                " (set controller.http_port to another port, or to 0)",
                reason="PORT_TAKEN",
            ) from error
        self.address = f"{host}:{self._listener.sockets[0].getsockname()[1]}"
        return self.address

    def _app(self) -> web.Application:
        admit = () if self._guard is None else (http_access.middleware(self._guard, SCOPES),)
        app = web.Application(middlewares=[self._deadline.middleware, _errors_as_json, *admit])
        app.router.add_get("/sd", self._sd)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/status", self._get_status)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/policy", self._get_policy)
        # PUT, which a foreign web page cannot send here without CORS.
        app.router.add_put("/policy", self._put_policy)
        app.router.add_put("/retry", self._put_retry)
        app.router.add_put("/drain", self._put_drain)
        app.router.add_put("/rollout", self._rollout.begin)
        app.router.add_put("/rollout/stop", self._rollout.stop)
        return app

    async def close(self) -> None:
        """Stops listening."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _sd(self, _request: web.Request) -> web.Response:
        has_tls = self._tls is not None
        return web.json_response(service_discovery(self._targets(), self.address, has_tls=has_tls))

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
        policy = _policy_in(await body_of(request))
        return web.json_response(asdict(await self._policy.switch(policy)))

    async def _put_retry(self, request: web.Request) -> web.Response:
        """200 with the names of retried replicas, all for {}; 400 for an unknown name."""
        body = object_in(await body_of(request), "name", '{"name": "decode-0"}')
        names = self._retry(text_in(body, "name"))
        return web.json_response({"retried": names})

    async def _put_drain(self, request: web.Request) -> web.Response:
        """200 with the name, or with none if it was not in use; 400 for an unknown name."""
        body = object_in(await body_of(request), "name", _DRAIN_EXAMPLE)
        name = text_in(body, "name")
        if name is None:
            raise InvalidRequestError(f"the body must be JSON like {_DRAIN_EXAMPLE}", field="name")
        names = self._drain(name, seconds_in(body, "timeout_s"), flag_in(body, "remove"))
        return web.json_response({"draining": names})


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
    answer = {"error": message, "reason": reason, "field": field}
    return web.json_response(answer, status=status, headers=headers)


def _policy_in(body: bytes) -> str:
    """Returns the name in {"policy": "fcfs"}."""
    policy = text_in(object_in(body, "policy", '{"policy": "fcfs"}'), "policy")
    if policy is None:
        raise InvalidRequestError('the body must be JSON like {"policy": "fcfs"}', field="policy")
    return policy
