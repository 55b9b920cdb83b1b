"""A trace as text: one line a span, children indented under their parent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tools.traces.collector import Span


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
