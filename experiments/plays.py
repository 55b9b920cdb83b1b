"""Sessions of a published shape as token ids, ready to be sent. Pure.

A play is one session of a trace with token ids for its texts. Ids are random and
depend on a key: two runs with different keys share no text, not even the
instruction, so no prefix cache helps one with what another left behind.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stream2llm.workload.document_orders import num_leading
from stream2llm.workload.traces.arrivals import first, poisson
from stream2llm.workload.traces.format import Event, Scale, Session, Shape
from stream2llm.workload.traces.generate import generate

# Below: control tokens of the tokenizer; above: what the smallest model does not know.
LOWEST_ID, HIGHEST_ID = 100, 4_000


@dataclass(frozen=True, slots=True)
class Change:
    """The context becomes its first `keep_tokens` tokens and these."""

    # After the session's arrival.
    at_s: float
    keep_tokens: int
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Play:
    """One question: what to send, and when."""

    session: Session
    prefix_ids: list[int]
    question_ids: list[int]
    # By the ids that the session's events name.
    documents: Mapping[str, list[int]]
    # The opening with the instruction, then one for each chunk; the last one comes
    # at the moment of the seal.
    changes: tuple[Change, ...]

    @property
    def seal_at_s(self) -> float:
        """After the arrival."""
        return self.session.events[-1].at_s

    @property
    def prompt_ids(self) -> list[int]:
        """All that was sent at the seal, the question included."""
        context: list[int] = []
        for change in self.changes:
            context = applied(context, change)
        return context + self.question_ids

    @property
    def num_prompt_tokens(self) -> int:
        """At the seal, the question included."""
        return context_length(self.changes) + len(self.question_ids)

    @property
    def num_longest_tokens(self) -> int:
        """Most that are known at any moment: a list may be longer before its last update."""
        lengths = (context_length([change]) for change in self.changes)
        return max(*lengths, self.num_prompt_tokens)


def context_length(changes: Sequence[Change]) -> int:
    """Tokens after these changes."""
    return changes[-1].keep_tokens + len(changes[-1].token_ids) if changes else 0


def applied(context: list[int], change: Change) -> list[int]:
    """The context after a change."""
    return context[: change.keep_tokens] + change.token_ids


def plays(
    shape: Shape,
    count: int,
    seed: int,
    *,
    key: str,
    rate: float,
    scale: Scale,
    gap_factor: float = 1.0,
) -> list[Play]:
    """Sessions of a shape; the seed decides lengths and times, the key the token ids alone."""
    arrivals = first(count, poisson(rate, random.Random(f"arrivals/{seed}")), "poisson")
    rng = np.random.default_rng(list(key.encode()))
    instruction: list[int] = []
    found = []
    for session in generate(shape, arrivals, seed, scale):
        instruction = instruction or token_ids(session.prefix.num_tokens, rng)
        found.append(play_of(with_gaps(session, gap_factor), instruction, rng))
    return found


def with_gaps(session: Session, factor: float) -> Session:
    """The gaps between chunks so many times as long; the first one comes when it did."""
    begin_s = session.events[0].at_s
    events = (
        Event(begin_s + factor * (event.at_s - begin_s), event.kind, event.documents)
        for event in session.events
    )
    return replace(session, events=tuple(events))


def play_of(session: Session, prefix_ids: list[int], rng: np.random.Generator) -> Play:
    """One session with token ids for what it only counts."""
    documents = {each.id: token_ids(each.num_tokens, rng) for each in session.documents}
    changes = (Change(0.0, 0, prefix_ids), *_changes(session, len(prefix_ids), documents))
    question = token_ids(session.suffix.num_tokens, rng)
    return Play(session, prefix_ids, question, documents, changes)


def _changes(
    session: Session, num_prefix_tokens: int, documents: Mapping[str, list[int]]
) -> Iterator[Change]:
    old: tuple[str, ...] = ()
    for event, new in zip(session.events, session.lists(), strict=False):
        common = num_leading(old, new)
        keep = num_prefix_tokens + sum(len(documents[each]) for each in new[:common])
        tokens = [token for each in new[common:] for token in documents[each]]
        yield Change(event.at_s, keep, tokens)
        old = new


def token_ids(count: int, rng: np.random.Generator) -> list[int]:
    """Random ones that every model here knows."""
    ids: list[int] = rng.integers(LOWEST_ID, HIGHEST_ID, count).tolist()
    return ids
