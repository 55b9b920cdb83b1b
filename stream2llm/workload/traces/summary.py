"""What a trace file is, in a few lines, and how it compares."""

from __future__ import annotations

from pathlib import Path

from stream2llm.workload.traces.fit import fit, fit_table
from stream2llm.workload.traces.format import Header, Session
from stream2llm.workload.traces.measure import Samples, statistic
from stream2llm.workload.traces.read import TraceReader


def summary(path: Path) -> str:
    """Reads and checks the whole file; raises TraceError where it is wrong."""
    samples, first, last = Samples(), None, None
    with TraceReader(path) as reader:
        for session in reader:
            first = first or session
            last = session
            samples.add(session, session.document_table(reader.shared), reader.header.scale)
    lines = [*_about(reader.header), _sizes(samples, reader.header), _span(first, last, samples)]
    if reader.header.shape is not None and last is not None:
        title = f"Against the published {reader.header.shape} workload, scaled back:"
        lines += ["", title, "", fit_table(fit(samples, reader.header.shape))]
    return "\n".join(lines)


def _about(header: Header) -> list[str]:
    scale = header.scale
    return [
        f"{header.name}: {header.schema} version {header.schema_version}, seed {header.seed}",
        f"from: {header.provenance}",
        f"scale: tokens x {scale.tokens:g}, time x {scale.time:g}, load x {scale.load:g}; "
        f"tokens counted by {header.counted_by}",
    ]


def _sizes(samples: Samples, header: Header) -> str:
    tokens = sum(samples.tokens) * header.scale.tokens
    longest = statistic(samples.tokens or [0.0], "max") * header.scale.tokens
    chunks = f"{sum(samples.chunks):,.0f} appends and updates"
    sealed = f"{tokens:,.0f} tokens in sealed prompts, the longest has {longest:,.0f}"
    return f"{len(samples.tokens):,} sessions, {chunks}, {sealed}"


def _span(first: Session | None, last: Session | None, samples: Samples) -> str:
    if first is None or last is None:
        return "no arrivals"
    span_s, count = last.arrival_s - first.arrival_s, len(samples.tokens)
    rate = f", {(count - 1) / span_s:.3g} a second" if span_s > 0 else ""
    return f"arrivals over {span_s:,.1f} s{rate}"
