"""The W3C trace context of an RPC: which trace it belongs to, and which span called it. Pure.

gRPC metadata carries it under the names that HTTP headers have: `traceparent` and
`tracestate`. A context that does not follow the specification is ignored, as it asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from stream2llm.api.call_metadata import Metadata

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
# The specification asks receivers to pass on at least that much.
_MAX_STATE_CHARS = 512
_SAMPLED = 0x01
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_STATE = re.compile(r"[\x20-\x7e]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span of a trace, as those that it calls know it."""

    # 32 and 16 lower-case hexadecimal digits, not all 0.
    trace_id: str
    span_id: str
    # Whether the trace is recorded; the caller's decision, which all follow.
    is_sampled: bool
    # State of tracing systems on the way, passed on as it is.
    state: str = ""

    @property
    def traceparent(self) -> str:
        """As in the metadata."""
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.is_sampled else 0:02x}"

    def metadata(self) -> Metadata:
        """For an RPC that continues the trace."""
        parent = ((TRACEPARENT, self.traceparent),)
        return (*parent, (TRACESTATE, self.state)) if self.state else parent


def parse_traceparent(traceparent: str, tracestate: str = "") -> TraceContext | None:
    """Returns the context; None when `traceparent` does not follow the specification."""
    match = _PARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    # A later version may append fields, version 00 has none.
    is_valid = version != "ff" and not (version == "00" and more)
    if not is_valid or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), _state(tracestate))


def context_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> TraceContext | None:
    """Returns the context in an RPC's metadata; None if there is no valid one."""
    parents, states = [], []
    for name, value in metadata or ():
        if name == TRACEPARENT:
            parents.append(value)
        elif name == TRACESTATE:
            states.append(value)
    # Several parents are none: nothing says which is meant.
    if len(parents) != 1 or not isinstance(parents[0], str):
        return None
    return parse_traceparent(parents[0], ",".join(s for s in states if isinstance(s, str)))


def _state(tracestate: str) -> str:
    is_usable = len(tracestate) <= _MAX_STATE_CHARS and _STATE.fullmatch(tracestate)
    return tracestate if is_usable else ""
