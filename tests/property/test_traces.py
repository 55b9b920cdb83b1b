"""Traces against their invariants.

1. What is written is what is read, for any valid trace.
2. A generated trace is valid, whatever shape, seed, length and scale.
3. A generated session's offsets never decrease and its seal comes with its last chunk.
4. Totals are handed out once each, and no part gets less than it needs where that can be.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from stream2llm.workload.traces.check import LINE, Checker
from stream2llm.workload.traces.format import (
    Content,
    Document,
    Event,
    Item,
    Scale,
    Session,
    Shape,
    SharedDocument,
)
from stream2llm.workload.traces.generate import generate
from stream2llm.workload.traces.plan import SHORTEST_FIRST_S, long_enough
from stream2llm.workload.traces.read import TraceReader
from stream2llm.workload.traces.write import write_trace
from tests.traces import a_header

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
TIMES = st.floats(0, 1e6)
SHAPES: st.SearchStrategy[Shape] = st.sampled_from(["crawler", "anns"])
CONTENTS = st.builds(Content, text=TEXTS, tokens=st.none() | st.integers(0, 10**6))


def documents(ids: list[str]) -> st.SearchStrategy[list[Document]]:
    made = [
        st.builds(Document, st.just(each), TEXTS, st.none() | st.integers(1, 10**6)) for each in ids
    ]
    return st.tuples(*made).map(list)


@st.composite
def traces(draw: st.DrawFn) -> list[Item]:
    """Shared documents first, then sessions that name them and their own."""
    shared = draw(documents(["s0", "s1"]))
    arrivals = sorted(draw(st.lists(TIMES, max_size=4)))
    sessions = [draw(sessions_at(f"q{n}", arrival)) for n, arrival in enumerate(arrivals)]
    return [*map(SharedDocument, shared), *sessions]


@st.composite
def sessions_at(draw: st.DrawFn, name: str, arrival_s: float) -> Session:
    own = draw(documents(["a", "b"]))
    lists = st.lists(st.sampled_from(["a", "b", "s0", "s1"]), min_size=1, max_size=4).map(tuple)
    kinds = st.sampled_from(["append", "update"])
    times = sorted(draw(st.lists(TIMES, max_size=4)))
    events = [Event(at_s, draw(kinds), draw(lists)) for at_s in times]
    seal = Event(times[-1] if times else 0.0, "seal")
    prefix, suffix = draw(CONTENTS), draw(CONTENTS)
    output_tokens = draw(st.none() | st.integers(1, 10**6))
    return Session(name, arrival_s, prefix, suffix, tuple(own), (*events, seal), output_tokens)


@given(traces())
def test_1_what_is_written_is_read(items: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        num_lines = write_trace(path, a_header(), items)
        with TraceReader(path) as reader:
            sessions = list(reader)
            shared = [SharedDocument(document) for document in reader.shared.values()]
    assert num_lines == 1 + len(items)
    assert [*shared, *sessions] == items


@settings(max_examples=40)
@given(SHAPES, st.integers(0, 2**32), st.integers(1, 40), st.floats(1e-4, 3), st.floats(1e-3, 50))
def test_2_and_3_generated_sessions_are_valid(
    shape: Shape, seed: int, count: int, tokens: float, time: float
) -> None:
    checker = Checker()
    arrivals = [float(number) for number in range(count)]
    for session in generate(shape, arrivals, seed, Scale(tokens, time)):
        assert LINE.validate_python(session) == session
        assert checker.problems(session) == []
        assert session.events[-1].at_s == session.events[-2].at_s
        assert session.events[0].at_s >= 0


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.2, 10)), min_size=1), st.randoms())
def test_4_totals_hold_their_parts(pairs: list[tuple[float, float]], rng: random.Random) -> None:
    parts = [part for part, _ in pairs]
    totals = [part + more for part, more in pairs]
    rng.shuffle(totals)
    given_totals = long_enough(totals, parts, rng)
    assert sorted(given_totals) == sorted(totals)
    for total, part in zip(given_totals, parts, strict=True):
        assert total >= part + SHORTEST_FIRST_S
