"""What stubs are made from: a channel on the virtual network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.simulation.call import Call
from tests.simulation.network import Network
from tests.simulation.process import Process


class Channel:
    """Begins RPCs of one process to one address."""

    def __init__(
        self, network: Network, client: Process, address: str, read_s: float = 0.0
    ) -> None:
        """`read_s` is how long the process takes to read one message."""
        self._network = network
        self._read_s = read_s
        self._client = client
        self._address = address
        self._calls: dict[Call, None] = {}

    def unary_unary(
        self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[..., Call]:
        return partial(self._begin, path, request_serializer, response_deserializer)

    unary_stream = unary_unary

    def stream_stream(
        self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[..., Call]:
        """Our code writes to its streams, and gives no iterator."""
        return partial(self._begin, path, request_serializer, response_deserializer, None)

    def _begin(
        self,
        path: str,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        wait_for_ready: bool = False,
    ) -> Call:
        sent = tuple(metadata or ())
        call = Call(self._network, self._client, path, encode, decode, sent, self._read_s)
        self._calls[call] = None
        call.add_done_callback(lambda done: self._calls.pop(done, None))
        call.begin(self._address, request, timeout, wait_for_ready=wait_for_ready)
        return call

    async def close(self) -> None:
        for call in list(self._calls):
            call.cancel()
