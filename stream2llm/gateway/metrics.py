"""Metrics of the gateway. Labels come from closed sets: its routes, and statuses of HTTP."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry

from stream2llm.serving.observability.metric_maker import MetricMaker

# The route of what is at no known path.
UNKNOWN_ROUTE = "(unknown)"


class GatewayMetrics:
    """Counts requests. What sessions do is in the routers' metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = MetricMaker(registry)
        self._requests = make.counter(
            "gateway_requests",
            "HTTP requests that have ended, by route and status; 499: the client left first.",
            "route",
            "status",
        )
        self._in_flight = make.gauge(
            "gateway_requests_in_flight",
            "HTTP requests under way, from the first byte to the end of the answer.",
        )

        self._websockets = make.gauge("gateway_websockets", "WebSockets that are open.")
        self._chars = make.gauge(
            "gateway_conversation_chars",
            "Characters of the conversations that are remembered for clients, and of requests of"
            " WebSockets that wait.",
        )

    def watch(self, websockets: Callable[[], float], chars: Callable[[], float]) -> None:
        """Shows what these return."""
        self._websockets.set_function(websockets)
        self._chars.set_function(chars)

    def begun(self) -> None:
        """A request has come."""
        self._in_flight.inc()

    def ended(self, route: str, status: int) -> None:
        """A request has been answered, or its client has left."""
        self._in_flight.dec()
        self._requests.labels(route, str(status)).inc()
