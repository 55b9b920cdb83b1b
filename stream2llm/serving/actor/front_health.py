"""What a router's gRPC health service and a gateway's /health say, asked from outside."""

from __future__ import annotations

from enum import Enum
from urllib.error import HTTPError

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stream2llm.api.credentials import ClientSecurity
from stream2llm.api.grpc_options import SERVICE_NAME
from stream2llm.api.tls import ClientTls
from stream2llm.client.channels import open_channel
from stream2llm.serving.http.own_http import UNREAD, open_url
from stream2llm.serving.system.ports import is_listening

_MAX_ANSWER_BYTES = 64 * 1024


class Health(Enum):
    """The state of a router or gateway, in the words that `stream2llm ready` prints."""

    SERVING = "serving"
    NOT_SERVING = "not serving: it drains, or has no ready worker of a role, or no router"
    ABSENT = "nothing listens there"
    SILENT = "no answer"


def health_of(address: str, timeout_s: float, tls: ClientTls | None = None) -> Health:
    """Asks the router at "host:port"; raises nothing for what the network does.

    Raises InvalidRequestError for a file of `tls` that cannot be read.
    """
    with open_channel(address, tls, _MAX_ANSWER_BYTES) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError:
            return Health.SILENT if _listens(address, timeout_s) else Health.ABSENT
    is_serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return Health.SERVING if is_serving else Health.NOT_SERVING


def health_of_gateway(address: str, timeout_s: float, tls: ClientTls | None = None) -> Health:
    """Asks the gateway at "host:port"; raises as `health_of`."""
    security = ClientSecurity(tls)
    try:
        with open_url(f"{security.scheme}://{address}/health", timeout_s, security):
            return Health.SERVING
    except HTTPError as error:
        with error:
            return Health.NOT_SERVING
    except UNREAD:
        return Health.SILENT if _listens(address, timeout_s) else Health.ABSENT


def _listens(address: str, timeout_s: float) -> bool:
    host, _, port = address.rpartition(":")
    return port.isdecimal() and is_listening(host.strip("[]"), int(port), timeout_s)
