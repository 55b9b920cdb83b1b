"""Metadata that goes with every call of a channel, for stubs that are made from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Metadata = tuple[tuple[str, str], ...]

# Names under which gateways send the deadline of a first token, in milliseconds, each with
# whose it is. llm-d has renamed its own and still sends the second; of Dynamo's, the first
# is the one that its code reads, the second the one of its proposal.
TTFT_SLO_NAMES = {
    "x-llm-d-slo-ttft-ms": "llm-d",
    "x-slo-ttft-ms": "llm-d and the Gateway API inference extension, earlier",
    "x-dynamo-meta-slo-ttft-ms": "Dynamo",
    "x-dynamo-slo-ttft-ms": "Dynamo, as proposed",
}


def bearer(secret: str) -> Metadata:
    """The header with an API key or token; none for an empty one."""
    return (("authorization", f"Bearer {secret}"),) if secret else ()


class CallsWith:
    """Makes stubs whose calls carry metadata: `Stub(CallsWith(channel, metadata))`.

    `metadata` is asked at every call, and comes before what the caller of a stub gives.
    Explicit rather than by an interceptor or call credentials: grpc.aio's interceptors wrap
    streams in tasks of their own, and gRPC refuses call credentials on plain channels.
    """

    def __init__(
        self,
        channel: Any,
        metadata: Callable[[], Metadata],
        on_call: Callable[[Any], object] = lambda _call: None,
    ) -> None:
        """`on_call` gets each call as it begins."""
        self._channel = channel
        self._metadata = metadata
        self._on_call = on_call

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """As the channel's."""
        return self._with(self._channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """As the channel's."""
        return self._with(self._channel.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """As the channel's."""
        return self._with(self._channel.stream_unary(*arguments, **options))

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """As the channel's."""
        return self._with(self._channel.stream_stream(*arguments, **options))

    def _with(self, method: Any) -> Callable[..., Any]:
        def call(*arguments: Any, metadata: Any = None, **options: Any) -> Any:
            sent = (*self._metadata(), *(metadata or ()))
            begun = method(*arguments, metadata=sent or None, **options)
            self._on_call(begun)
            return begun

        return call
