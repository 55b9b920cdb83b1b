"""Workers and routers without engines, for tests of the control plane.

They keep the interface of `prefill_worker.worker.Worker` and `router.server.Router`,
and start a child process, as an engine does, which answers as an engine's main loop does.
Engine arguments steer them:

    fail       raise ValueError with this text at the start
    crash      the process ends at the start, without a word
    fail_once  path: fail unless the file exists, and create it
    refuse     connect_peers raises
    sick       examine says so
    deaf       set_policy raises
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream2llm.api.errors import UnavailableError
from stream2llm.engine.sign_of_life import SignOfLife
from stream2llm.security.certificates import open_certificates
from stream2llm.security.tls import http_server_context
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.actor.loss import Cause, Loss
from stream2llm.serving.actor.replica_status import RouterStatus
from stream2llm.serving.http.metrics_http import MetricsServer
from stream2llm.serving.settings.worker_spec import (
    ClusterView,
    WorkerAddress,
    WorkerSpec,
    WorkerStatus,
)
from stream2llm.serving.system.clock import SystemClock


class FakeWorker:
    """A worker whose engine is a process that echoes lines."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._child: asyncio.subprocess.Process
        # One, whichever caller waits for it: a controller that takes over waits beside its predecessor.
        self._dead: asyncio.Task[Loss]
        self._metrics: MetricsServer
        self._policy: str = spec.options.prefill.policy
        self._is_draining = False

    async def start(self) -> WorkerAddress:
        self._fail_as_told()
        pipe = asyncio.subprocess.PIPE
        self._child = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
        self._sign_of_life = SignOfLife(
            self._ask, lambda: 0.0, self._spec.hung_after_s, SystemClock()
        )
        self._dead = asyncio.create_task(self._until_dead())
        certificates = open_certificates(self._spec.security.tls_files)
        tls = http_server_context(certificates)
        guard = Guards(self._spec.security.auth, SystemClock()).of("metrics")
        self._metrics = MetricsServer("127.0.0.1", self._spec.metrics_port, tls=tls, guard=guard)
        return WorkerAddress(
            worker_id=self._spec.worker_id,
            role=self._spec.role,
            grpc_address=f"127.0.0.1:{self._spec.side_channel_port}",
            metrics_address=self._metrics.address,
            pids=self._pids(),
            max_model_len=1024,
            num_kv_blocks=100,
            block_size=32,
        )

    def _fail_as_told(self) -> None:
        told = self._spec.engine_args
        if told.get("crash"):
            os._exit(3)
        if told.get("fail"):
            raise ValueError(told["fail"])
        once = Path(told.get("fail_once", "/"))
        if not once.exists():
            once.touch()
            raise RuntimeError("not this time")

    async def connect_peers(self, prefill: tuple[WorkerAddress, ...]) -> None:
        if self._spec.engine_args.get("refuse"):
            raise ConnectionError(f"no handshake with {prefill[0].worker_id}")

    async def examine(self) -> str:
        return str(self._spec.engine_args.get("sick", ""))

    async def wait_dead(self) -> Loss:
        return await asyncio.shield(self._dead)

    async def _until_dead(self) -> Loss:
        ended = asyncio.create_task(self._child.wait())
        hung = asyncio.create_task(self._sign_of_life.until_hung())
        done, left = await asyncio.wait({ended, hung}, return_when=asyncio.FIRST_COMPLETED)
        for each in left:
            each.cancel()
        if ended in done or isinstance(hung.exception(), EOFError):
            return Loss(Cause.DIED, f"engine process ended with {await self._child.wait()}")
        self._child.kill()
        return hung.result()

    async def _ask(self) -> None:
        assert self._child.stdout is not None
        self._child.stdin.write(b"are you there?\n")
        if not await self._child.stdout.readline():
            raise EOFError

    async def status(self) -> WorkerStatus:
        policy = self._policy if self._spec.role == "prefill" else ""
        return WorkerStatus(
            num_sessions=0,
            num_kv_blocks=100,
            num_kv_blocks_held=0,
            block_size=32,
            pids=self._pids(),
            policy=policy,
            is_draining=self._is_draining,
        )

    async def set_policy(self, policy: str) -> None:
        if self._spec.engine_args.get("deaf"):
            raise UnavailableError("the scheduler did not confirm command 2")
        self._policy = policy

    async def drain(self, timeout_s: float) -> None:
        self._is_draining = True

    async def stop(self) -> None:
        if self._child.returncode is None:
            self._child.kill()
        self._metrics.close()

    def _pids(self) -> tuple[int, ...]:
        return (os.getpid(), self._child.pid)


@dataclass(frozen=True, slots=True)
class FakeRouterAddress:
    """A router's own status."""

    router_id: str
    grpc_address: str
    metrics_address: str


@dataclass(frozen=True, slots=True)
class FakeRouterStatus(RouterStatus):
    """With the names of the workers in each view, and where the controller is."""

    views: list[list[str]] = field(default_factory=list)
    controller: str = ""


class FakeRouter:
    """A router that only remembers the views it was given."""

    def __init__(self, spec: Any) -> None:
        self._spec = spec
        self._views: list[ClusterView] = []

    async def start(self) -> FakeRouterAddress:
        return FakeRouterAddress(self._spec.router_id, "127.0.0.1:1", "127.0.0.1:2")

    def set_view(self, view: ClusterView) -> None:
        self._views.append(view)

    async def watch_loop(self) -> None:
        return None

    async def status(self) -> FakeRouterStatus:
        views = [[w.worker_id for w in v.workers] for v in self._views]
        # The first health check may come before the first view.
        controller = self._views[-1].controller_address if self._views else ""
        return FakeRouterStatus(self._spec.router_id, {}, views=views, controller=controller)

    async def drain(self, timeout_s: float | None = None) -> None:
        return None

    async def stop(self) -> None:
        return None
