"""Sessions of a trace as token ids, ready to be sent, and what each event makes of a context. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from stream2llm.api.requests import Content
from stream2llm.simulator import work
from stream2llm.simulator.work import Task
from stream2llm.workload.document_orders import num_leading
from stream2llm.workload.replay.plan import PlannedSession, Planner
from stream2llm.workload.traces.arrivals import Poisson, Process, first
from stream2llm.workload.traces.format import Scale, Session, Shape
from stream2llm.workload.traces.generate import generate

# Below: control tokens of the tokenizer; above: what the smallest model does not know.
LOWEST_ID, HIGHEST_ID = 100, 4_000
_POISSON = Poisson()


@dataclass(frozen=True, slots=True)
class TimedSplice:
    """The context becomes its first `keep_tokens` tokens and these."""

    # After the beginning of the run.
    due_s: float
    keep_tokens: int
    token_ids: list[int]
    seals: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the context from then on."""
        return self.keep_tokens + len(self.token_ids)


class TokenMaker:
    """Makes random token ids where a trace only counts them."""

    def text(self, num_tokens: int, key: str) -> list[int]:
        """So many ids, which every model here knows; the key decides them."""
        rng = np.random.default_rng(list(key.encode()))
        ids: list[int] = rng.integers(LOWEST_ID, HIGHEST_ID, num_tokens).tolist()
        return ids


def with_token_ids(sessions: Iterable[Session], key: str) -> list[PlannedSession]:
    """Sessions of a trace with token ids for what they count.

    Two runs with different keys share no text, not even the instruction, so no prefix
    cache helps one with what another left behind.
    """
    return list(Planner(TokenMaker(), text_seed=key).plan(sessions, {}))


def generated(
    shape: Shape,
    count: int,
    seed: int,
    *,
    key: str,
    rate: float,
    scale: Scale,
    gap_factor: float = 1.0,
    process: Process = _POISSON,
) -> list[PlannedSession]:
    """Sessions of a shape; the seed decides lengths and times, the key the token ids alone."""
    arrivals = first(count, process.arrivals(rate, random.Random(f"arrivals/{seed}")), "arrivals")
    sessions = generate(shape, arrivals, seed, scale)
    return with_token_ids((each.with_gaps(gap_factor) for each in sessions), key)


def splices(session: PlannedSession) -> list[TimedSplice]:
    """The splices of the opening with the instruction, of each step, and of the seal."""
    prefix, question = _ids(session.prefix), _ids(session.suffix)
    found = [TimedSplice(session.due_s, 0, prefix)]
    tokens, old = dict[str, list[int]](), list[str]()
    for step in session.steps:
        tokens |= {
            each.id: _ids(each.content) for each in step.documents if each.content is not None
        }
        named = [each.id for each in step.documents]
        new = named if step.is_update else old + named
        common = num_leading(old, new)
        keep = len(prefix) + sum(len(tokens[name]) for name in new[:common])
        found.append(
            TimedSplice(step.due_s, keep, [t for name in new[common:] for t in tokens[name]])
        )
        old = new
    return [*found, TimedSplice(session.seal_due_s, found[-1].num_tokens, question, seals=True)]


def submissions(session: PlannedSession) -> list[TimedSplice]:
    """The splices, the last step and the seal as one: a router sends on together what comes at once."""
    *before, last, seal = splices(session)
    return [
        *before,
        replace(seal, keep_tokens=last.keep_tokens, token_ids=last.token_ids + seal.token_ids),
    ]


def applied(context: list[int], change: TimedSplice) -> list[int]:
    """The context after a splice."""
    return context[: change.keep_tokens] + change.token_ids


def prompt_ids(session: PlannedSession) -> list[int]:
    """All that was sent at the seal, the question included."""
    context: list[int] = []
    for change in splices(session):
        context = applied(context, change)
    return context


def longest_tokens(session: PlannedSession) -> int:
    """Most that are known at any moment: a list may be longer before its last update."""
    return max(change.num_tokens for change in splices(session))


def task_of(session: PlannedSession) -> Task:
    """The session in token counts, as the simulator plays it."""
    counted = (
        work.Change(each.due_s, each.keep_tokens, each.num_tokens, each.seals)
        for each in splices(session)
    )
    return Task(session.session_id, tuple(counted), session.output_tokens)


def _ids(content: Content) -> list[int]:
    assert isinstance(content, list), "a session with texts has no token ids yet"
    return content
