"""What the processes of a cluster listen on, as the kernel has it."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from stream2llm.api.grpc_options import channel_options
from stream2llm.api.tls import ClientTls, http_context
from stream2llm.client.channels import channel_credentials
from stream2llm.engine.listening import listening_sockets
from stream2llm.serving.system.processes import owned_processes

# One call of each service that Ray's processes offer: of the GCS, of the raylet's two servers, of
# every worker, driver included, and of the agent.
RAY_CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.ReporterService/GetTraceback",
)
# No such service, or nothing that speaks gRPC.
NOT_THERE = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE)
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """One listening TCP socket."""

    host: str
    port: int
    # Whose it is: "<replica>/<incarnation>", or "ray/1" for Ray's own processes.
    owner: str
    process: str

    @property
    def address(self) -> str:
        """host:port, an IPv4 address as such."""
        return f"{self.host.removeprefix('::ffff:')}:{self.port}"

    def __str__(self) -> str:
        return f"{self.host}:{self.port} {self.owner} {self.process}"


def listeners(cluster_id: str) -> list[Listener]:
    """All of them, over IPv4 and IPv6, of every process that carries the cluster's mark.

    And of this process, which has one as a driver of Ray.
    """
    found = [
        Listener(*address, "driver", "this process") for address in listening_sockets([os.getpid()])
    ]
    for process in owned_processes(f"{cluster_id}/"):
        owner = process.owner.removeprefix(f"{cluster_id}/").rstrip("/")
        name = _name_of(process.command)
        found += [Listener(*address, owner, name) for address in listening_sockets([process.pid])]
    return sorted(found)


def _name_of(command: str) -> str:
    """The title a process gave itself, its program's name, or the script that Python runs."""
    words = command.split() or ["?"]
    name = words[0].rpartition("/")[2]
    scripts = [word.rpartition("/")[2] for word in words if word.endswith(".py")]
    return scripts[0] if name.startswith("python") and scripts else name


def codes_of(
    listener: Listener, calls: Sequence[str], tls: ClientTls | None = None
) -> Iterator[tuple[str, grpc.StatusCode]]:
    """The status of each RPC, without credentials; ends where no gRPC is. Plain text without `tls`."""
    options = channel_options(1 << 20)
    with (
        grpc.insecure_channel(listener.address, options)
        if tls is None
        else grpc.secure_channel(listener.address, channel_credentials(tls), options)
    ) as channel:
        for call in calls:
            code = code_of(channel, call)
            yield call, code
            if code is grpc.StatusCode.UNAVAILABLE:
                return


def code_of(channel: grpc.Channel, call: str) -> grpc.StatusCode:
    """The status of one RPC with an empty request."""
    try:
        channel.unary_unary(call)(b"", timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def page_of(
    listener: Listener, path: str, method: str = "GET", tls: ClientTls | None = None
) -> tuple[int, bytes]:
    """HTTP status and text of a page, without credentials; 0 for no HTTP. Plain text without `tls`."""
    connection = (
        http.client.HTTPConnection(listener.address, timeout=_TIMEOUT_S)
        if tls is None
        else http.client.HTTPSConnection(
            listener.address, timeout=_TIMEOUT_S, context=http_context(tls)
        )
    )
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
