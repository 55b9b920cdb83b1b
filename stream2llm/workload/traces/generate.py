"""Sessions with the quantiles of a published workload.

Plans first (numbers for all sessions, because their distributions are met as a
whole), then one session after the other, with text if there is a maker for it.
The seed decides everything but the arrivals, which are given.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from stream2llm.workload.traces.format import Content, Scale, Session, Shape
from stream2llm.workload.traces.layout import anns_session, crawler_session
from stream2llm.workload.traces.plan import plans
from stream2llm.workload.traces.text import TextMaker

_LAYOUTS = {"crawler": crawler_session, "anns": anns_session}


def generate(
    shape: Shape,
    arrivals_s: Sequence[float],
    seed: int,
    scale: Scale,
    maker: TextMaker | None = None,
    *,
    delay_factor: float = 1.0,
    gap_factor: float = 1.0,
) -> Iterator[Session]:
    """One session for each arrival; without a maker only token counts.

    `delay_factor`: sources that are so many times as slow, see `Plan.delayed`; `gap_factor`: see
    `plans`.
    """
    rng = random.Random(f"{shape}/{seed}")
    planned = plans(shape, len(arrivals_s), rng, gap_factor=gap_factor)
    instruction: Content | None = None
    for number, (arrival_s, plan) in enumerate(zip(arrivals_s, planned, strict=True)):
        delayed = plan.delayed(delay_factor)
        session = _LAYOUTS[shape](f"q{number}", arrival_s, delayed, scale, rng)
        if maker is None:
            yield session
            continue
        if instruction is None:
            # One for all sessions, as a deployment has it.
            instruction = maker.content(session.prefix.num_tokens, f"{seed}/prefix")
        yield _with_text(session, instruction, maker, seed)


def _with_text(session: Session, prefix: Content, maker: TextMaker, seed: int) -> Session:
    key = f"{seed}/{session.id}"
    return Session(
        id=session.id,
        arrival_s=session.arrival_s,
        prefix=prefix,
        suffix=maker.content(session.suffix.num_tokens, f"{key}/suffix"),
        documents=tuple(maker.document(each, f"{key}/{each.id}") for each in session.documents),
        events=session.events,
    )
