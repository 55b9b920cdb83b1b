"""The inside of an actor: prepares the process, builds the hosted object, forwards calls.

Independent of Ray and vLLM; `*/actor.py` add Ray's decorator. The hosted class is named
by a dotted path and imported only in `start`, when the environment that vLLM reads on
import is complete.

All methods must run on ONE event loop, because the engine and the gRPC server live on
it. Ray runs each concurrency group in a separate loop, so all of these stay in the
default group (wide enough that nothing queues); only `ping` is in the group `control`,
and answers even when the loop is busy.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from stream2llm.api.loopback import is_loopback
from stream2llm.models.context_length import context_length
from stream2llm.models.names import has_name
from stream2llm.models.node_path import same_on_all_nodes
from stream2llm.models.store import resolve_model
from stream2llm.serving.actor.loss import Loss
from stream2llm.serving.actor.replica_status import GatewayStatus, RouterStatus
from stream2llm.serving.actor.root_cause import LogTail, describe_failure
from stream2llm.serving.actor.sigterm import Sigterm
from stream2llm.serving.observability import logs
from stream2llm.serving.settings.gateway_spec import GatewaySpec
from stream2llm.serving.settings.launch import (
    GatewayStarted,
    Launch,
    RouterStarted,
    Started,
    StartOutcome,
    cores_of,
)
from stream2llm.serving.settings.router_spec import RouterSpec
from stream2llm.serving.settings.worker_spec import (
    ClusterView,
    WorkerAddress,
    WorkerSpec,
    WorkerStatus,
)
from stream2llm.serving.system import garbage
from stream2llm.serving.system.ports import pick_port
from stream2llm.serving.system.processes import OWNER_VARIABLE

Spec = TypeVar("Spec", RouterSpec, WorkerSpec, GatewaySpec)
_log = logging.getLogger(__name__)
_ALL_INTERFACES = ("0.0.0.0", "::")
# After a drain that SIGTERM began: until the controller, if there is one, ends the replica.
STOP_REQUEST_S = 10.0


def with_model_of_node(spec: Spec) -> Spec:
    """The spec with a directory of this node; raises ModelStoreError where the model is not here.

    The directory that the submitting machine found, if the node has it, too; else what the
    configuration's `model` is here, for a worker by a path that is the same on all nodes.
    """
    if spec.model_path and Path(spec.model_path).is_dir():
        return spec
    path = resolve_model(spec.model or spec.model_path)
    if isinstance(spec, WorkerSpec) and has_name(spec.model):
        path = same_on_all_nodes(spec.model, path)
    found = replace(spec, model_path=str(path))
    if isinstance(found, RouterSpec) and not found.max_model_len:
        return replace(found, max_model_len=context_length(path))
    return found


def load(dotted: str) -> Any:
    """Imports the object named by "package.module:name"."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


class _Shell:
    """The common part of all kinds of actors."""

    def __init__(
        self, launch: Launch, node_ip: str, sigterm: Sigterm | None = None, node_id: str = ""
    ) -> None:
        """`node_id` is Ray's of the node; with `sigterm` SIGTERM drains what is hosted."""
        logs.configure(log_format=launch.spec.observability.logs)
        self._launch = launch
        self._node_ip = node_ip
        self._node_id = node_id
        self._hosted: Any = None
        self._starting: asyncio.Task[StartOutcome] | None = None
        self._sigterm = sigterm
        self._ending: asyncio.Task[None] | None = None
        self._stop_requested = asyncio.Event()

    def ping(self) -> str:
        """Returns Ray's id of the node that it is on."""
        return self._node_id

    async def start(self) -> StartOutcome:
        """Builds and starts the hosted object, once; returns its errors instead of raising them."""
        if self._starting is None:
            if self._sigterm is not None:
                self._sigterm.watch(self._end_soon)
            self._starting = asyncio.create_task(self._try_start())
        # A controller that has taken over waits for the start that its predecessor began.
        return await asyncio.shield(self._starting)

    async def _try_start(self) -> StartOutcome:
        log = LogTail()
        try:
            address = await self._start()
            garbage.settle()
            return StartOutcome(address)
        except Exception as error:
            _log.exception("start_failed name=%s", self._launch.name)
            reason, permanent = describe_failure(error, log.read())
            return StartOutcome(None, reason, permanent)

    async def _start(self) -> Started:
        raise NotImplementedError

    def _end_soon(self) -> None:
        _log.warning("sigterm name=%s (drains, then ends)", self._launch.name)
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        """The node, the pod or an operator ends this process."""
        try:
            if self._hosted is not None:
                await self._hosted.drain(self._launch.drain_timeout_s)
            with suppress(TimeoutError):  # the controller first shows routers a view without it
                async with asyncio.timeout(STOP_REQUEST_S):
                    await self._stop_requested.wait()
            await self.stop()
        except Exception:  # it ends in any case
            _log.exception("no_graceful_end name=%s", self._launch.name)
        os._exit(0)

    async def stop(self) -> None:
        """Stops the hosted object; may be called before `start` has ended, and again."""
        self._stop_requested.set()
        if self._hosted is not None:
            await self._hosted.stop()

    def _resolve_host(self, host: str) -> str:
        return self._node_ip if host == "auto" else host


class WorkerShell(_Shell):
    """Hosts a prefill, decode or mixed worker."""

    async def _start(self) -> WorkerAddress:
        spec = self._prepare_process()
        self._hosted = load(self._launch.factory)(spec)
        address: WorkerAddress = await self._hosted.start()
        return address

    def _prepare_process(self) -> WorkerSpec:
        assert isinstance(self._launch.spec, WorkerSpec)
        host = self._resolve_host(self._launch.spec.host)
        port = pick_port(host, os.environ.get(OWNER_VARIABLE, self._launch.name))
        # Where others reach this node. vLLM would take the address of the outward route, which
        # a node in a network of its own has not, and one with several networks has elsewhere.
        reached_at = self._node_ip if host in _ALL_INTERFACES else host
        os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] = reached_at
        if not is_loopback(reached_at):  # the engine chooses for those
            os.environ.setdefault("VLLM_HOST_IP", reached_at)
        os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(port)
        if self._launch.cpu_bind is not None:
            cores = tuple(sorted(os.sched_getaffinity(0)))
            bind = cores_of(self._launch.cpu_bind, 0, self._launch.core_index, cores)
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", bind)
        spec = replace(self._launch.spec, host=host, side_channel_port=port)
        return with_model_of_node(spec)

    async def connect_peers(self, prefill: tuple[WorkerAddress, ...]) -> None:
        """Decode: shakes hands with these prefill workers, so that no session waits for it."""
        await self._hosted.connect_peers(prefill)

    async def examine(self) -> str:
        """Returns what keeps peers from connecting with the worker; "" for nothing."""
        fault: str = await self._hosted.examine()
        return fault

    async def wait_dead(self) -> Loss:
        """Returns why when the engine has died."""
        loss: Loss = await self._hosted.wait_dead()
        return loss

    async def status(self) -> WorkerStatus:
        """Returns load and memory."""
        status: WorkerStatus = await self._hosted.status()
        return status

    async def drain(self, timeout_s: float) -> None:
        """Refuses new sessions and waits for the open ones, then ends the rest."""
        await self._hosted.drain(timeout_s)


class _FrontShell(_Shell):
    """The common part of what needs to know who is there, and dies with its process."""

    def __init__(
        self, launch: Launch, node_ip: str, sigterm: Sigterm | None = None, node_id: str = ""
    ) -> None:
        super().__init__(launch, node_ip, sigterm, node_id)
        self._view_version = -1

    async def set_view(self, view: ClusterView) -> None:
        """Sends a view of routers and workers; a late, older one is dropped."""
        if view.version > self._view_version:
            self._view_version = view.version
            self._hosted.set_view(view)

    async def wait_dead(self) -> Loss:
        """Never returns: it dies with its process."""
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def drain(self, timeout_s: float) -> None:
        """Refuses new work and waits for what is open, then ends the rest."""
        await self._hosted.drain(timeout_s)

    async def _host(self) -> Any:
        """Builds and starts what is hosted; returns its address."""
        spec: Any = self._launch.spec
        spec = with_model_of_node(replace(spec, host=self._resolve_host(spec.host)))
        self._hosted = load(self._launch.factory)(spec)
        return await self._hosted.start()


class RouterShell(_FrontShell):
    """Hosts a router."""

    _watching: asyncio.Task[None] | None = None

    async def _start(self) -> RouterStarted:
        address = await self._host()
        self._watching = asyncio.create_task(self._hosted.watch_loop())
        return RouterStarted(
            address.router_id, "router", address.grpc_address, address.metrics_address,
            (os.getpid(),),
        )  # fmt: skip

    async def stop(self) -> None:
        """Stops the router; may be called before `start` has ended, and again."""
        if self._watching is not None:
            self._watching.cancel()
        await super().stop()

    async def status(self) -> RouterStatus:
        """Returns the number of sessions by phase, and what tenants use."""
        status: RouterStatus = await self._hosted.status()
        return status


class GatewayShell(_FrontShell):
    """Hosts a gateway."""

    async def _start(self) -> GatewayStarted:
        address = await self._host()
        http = address.http_address
        return GatewayStarted(address.gateway_id, "gateway", http, http, (os.getpid(),))

    async def status(self) -> GatewayStatus:
        """Returns the number of requests under way."""
        status: GatewayStatus = await self._hosted.status()
        return status
