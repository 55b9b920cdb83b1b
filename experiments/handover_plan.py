"""Questions for the measurements of hand-overs: the published shapes, at a given length. Pure.

A question is a session of a generated trace, its documents and its times scaled
so that the context has the length and takes the seconds that are wanted.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.token_sessions import splices, with_token_ids
from stream2llm.workload.replay.plan import PlannedSession
from stream2llm.workload.traces.format import Document, Scale, Session, Shape
from stream2llm.workload.traces.generate import generate


def sessions(
    shape: Shape, count: int, num_tokens: int, duration_s: float, seed: int
) -> list[Session]:
    """Contexts of `num_tokens` at most, the last document `duration_s` after the opening."""
    found = generate(shape, [0.0] * count, seed, Scale())
    return [_scaled(each, num_tokens, duration_s) for each in found]


def questions(
    shape: Shape, count: int, num_tokens: int, duration_s: float, seed: int, salt: str = ""
) -> list[PlannedSession]:
    """The same with token ids of their own, so that no cache knows them; the salt changes them."""
    found = sessions(shape, count, num_tokens, duration_s, seed)
    return with_token_ids(found, f"{shape}/{num_tokens}/{seed}/{salt}")


def num_settled_tokens(question: PlannedSession, at_s: float) -> int:
    """How much of the prompt stood where it stands at the seal, and stayed from then on."""
    found = splices(question)
    known = [each.num_tokens for each in found if each.due_s <= at_s]
    return min([*known[-1:], *(each.keep_tokens for each in found if each.due_s > at_s)])


def _scaled(session: Session, num_tokens: int, duration_s: float) -> Session:
    sizes = {each.id: each.num_tokens for each in session.documents}
    # The longest list, which need not be the last: every one has to fit the model.
    factor = num_tokens / max(sum(sizes[name] for name in names) for names in session.lists())
    last_s = max(session.events[-1].at_s, 1e-3)
    return replace(
        session,
        documents=tuple(
            Document(name, tokens=max(round(size * factor), 1)) for name, size in sizes.items()
        ),
        events=tuple(
            replace(each, at_s=each.at_s / last_s * duration_s) for each in session.events
        ),
    )
