"""Listens for OTLP, and prints a session's trace once its parts have come.

The router's part comes when the session has ended. After that the trace is printed when no
span of it has come for a while.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from stream2llm.serving.observability.logs import one_line
from tools.traces.collector import Span, collecting


def by_trace(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """Returns the spans of each trace."""
    traces: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    return dict(traces)


def lines(spans: Sequence[Span]) -> Iterator[str]:
    """Yields one trace's lines: begin and duration in ms, service, name, attributes.

    A span whose parent is not among them, such as the client's, is at the left edge.
    """
    known = {span.span_id for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda each: each.begin_s):
        children[span.parent_id if span.parent_id in known else ""].append(span)
    first_s = min(span.begin_s for span in spans)
    yield f"trace {spans[0].trace_id}: {len(spans)} spans"
    yield f"{'begin ms':>10} {'ms':>9}  span"
    yield from _below("", children, first_s, depth=0)


def _below(
    parent_id: str, children: dict[str, list[Span]], first_s: float, depth: int
) -> Iterator[str]:
    for span in children[parent_id]:
        begin_ms, ms = 1000 * (span.begin_s - first_s), 1000 * span.duration_s
        yield f"{begin_ms:10.1f} {ms:9.1f}  {'  ' * depth}{_words(span)}"
        yield from _below(span.span_id, children, first_s, depth + 1)


def _words(span: Span) -> str:
    words = [span.name, f"[{span.instance or span.service}]"]
    words += [f"{_short(name)}={value}" for name, value in span.attributes.items()]
    words += [f"error={span.error!r}"] if span.error else []
    return " ".join(words)


def _short(name: str) -> str:
    return name.removeprefix("stream2llm.")


def main() -> None:
    """Runs until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tools.traces", description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:4317", help="host:port to listen on")
    parser.add_argument(
        "--quiet-s", type=float, default=3.0, help="seconds without a span that end a trace"
    )
    options = parser.parse_args()
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    with collecting(options.address) as (collector, endpoint):
        print(f"listening; set observability.tracing.otlp_endpoint to {endpoint}", flush=True)
        waiting: dict[str, list[Span]] = {}
        while not ending.wait(options.quiet_s):
            new = by_trace(collector.take())
            for trace_id in waiting.keys() - new.keys():
                if any(span.name == "session" for span in waiting[trace_id]):
                    _show(waiting.pop(trace_id))
            for trace_id, spans in new.items():
                waiting.setdefault(trace_id, []).extend(spans)
        left = [span for spans in waiting.values() for span in spans]
        for spans in by_trace((*left, *collector.take())).values():
            _show(spans)


def _show(spans: list[Span]) -> None:
    for line in lines(spans):
        print(one_line(line))
    print(flush=True)


if __name__ == "__main__":
    main()
