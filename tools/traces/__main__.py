"""Listens for OTLP, and prints a session's trace once its parts have come.

The router's part comes when the session has ended. After that the trace is printed when no
span of it has come for a while.
"""

from __future__ import annotations

import argparse
import signal
import threading

from stream2llm.serving.observability.logs import one_line
from tools.traces.collector import Span, collecting
from tools.traces.tree import by_trace, lines


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
