"""Documents and events of one generated session, in token counts. Pure.

crawler: each chunk appends one page. anns: each chunk is the whole list of a
search that gets better, in which one document is new: it is inserted, what is
behind it moves down, and the last one falls out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from stream2llm.workload.traces.format import Content, Document, Event, Scale, Session
from stream2llm.workload.traces.plan import Plan

# Judgement; nothing is published about them.
INSTRUCTION_TOKENS, QUESTION_TOKENS = 40, 24
# Documents of a search result; judgement too.
TOP_K = 10
# Standard deviations of the logarithms of page and document lengths. Not published:
# with these, sums of independent lengths (6.86 pages, 10 documents) spread as the published prompt
# lengths do: exp(sigma^2) - 1 = count x (exp(s^2) - 1), with s = 0.95 and 0.6.
PAGE_SIGMA, DOCUMENT_SIGMA = 1.55, 1.3
# New documents come in near the end: at TOP_K x u ** this, u uniform in [0, 1). Published is that
# more than a tenth of the sessions invalidate over 10,000 tokens, which is about computed
# ones: the simulator has 10 % over the published loads with it.
INSERTION_POWER = 0.2


def crawler_session(
    name: str, arrival_s: float, plan: Plan, scale: Scale, rng: random.Random
) -> Session:
    """Pages that are appended one by one."""
    sizes = split(_room(plan, scale), _lengths(len(plan.times_s), PAGE_SIGMA, rng))
    documents = [Document(f"p{number}", tokens=size) for number, size in enumerate(sizes)]
    events = [
        Event(_offset(at_s, scale), "append", (document.id,))
        for at_s, document in zip(plan.times_s, documents, strict=True)
    ]
    return _session(name, arrival_s, scale, documents, events)


def anns_session(
    name: str, arrival_s: float, plan: Plan, scale: Scale, rng: random.Random
) -> Session:
    """Lists that replace each other; the last one has the length of the plan."""
    lists = _refinements(len(plan.times_s), rng)
    lengths = _lengths(TOP_K + len(lists) - 1, DOCUMENT_SIGMA, rng)
    final = lists[-1]
    sizes = dict(zip(final, split(_room(plan, scale), [lengths[i] for i in final]), strict=True))
    per_length = sum(sizes.values()) / sum(lengths[i] for i in final)
    documents = [
        Document(f"d{i}", tokens=sizes.get(i, max(round(length * per_length), 1)))
        for i, length in enumerate(lengths)
    ]
    events = [
        Event(_offset(at_s, scale), "update", tuple(f"d{i}" for i in numbers))
        for at_s, numbers in zip(plan.times_s, lists, strict=True)
    ]
    return _session(name, arrival_s, scale, documents, events)


def split(total: int, weights: Sequence[float]) -> list[int]:
    """The total in parts by weight, each at least 1; more than the total if it is too small."""
    free, whole = max(total - len(weights), 0), sum(weights)
    parts, given, passed = [], 0, 0.0
    for weight in weights:
        passed += weight
        upto = round(free * passed / whole)
        parts.append(1 + upto - given)
        given = upto
    return parts


def _refinements(count: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Lists of document numbers; document TOP_K + i is new in list i + 1."""
    lists = [tuple(range(TOP_K))]
    for new in range(TOP_K, TOP_K + count - 1):
        place = int(TOP_K * rng.random() ** INSERTION_POWER)
        lists.append((*lists[-1][:place], new, *lists[-1][place:-1]))
    return lists


def _session(
    name: str, arrival_s: float, scale: Scale, documents: list[Document], events: list[Event]
) -> Session:
    return Session(
        id=name,
        arrival_s=arrival_s,
        prefix=Content(tokens=scale.scaled(INSTRUCTION_TOKENS)),
        suffix=Content(tokens=scale.scaled(QUESTION_TOKENS)),
        documents=tuple(documents),
        events=(*events, Event(events[-1].at_s, "seal")),
    )


def _room(plan: Plan, scale: Scale) -> int:
    """Tokens for documents."""
    fixed = scale.scaled(INSTRUCTION_TOKENS) + scale.scaled(QUESTION_TOKENS)
    return round(plan.num_tokens * scale.tokens) - fixed


def _offset(at_s: float, scale: Scale) -> float:
    """To a tenth of a microsecond: shorter files, and gaps of 1 ms may be scaled down much."""
    return round(at_s * scale.time, 7)


def _lengths(count: int, sigma: float, rng: random.Random) -> list[float]:
    return [rng.lognormvariate(0.0, sigma) for _ in range(count)]
