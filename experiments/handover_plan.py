"""Questions for the benchmark of hand-overs: the published shapes, at a given length. Pure.

A question is a session of a generated trace, its documents and its times scaled
so that the context has the length and takes the seconds that are wanted. Token
ids are random and the question's own, so that no cache knows them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from stream2llm.serving.prefix import as_tokens, common_prefix_len
from stream2llm.workload.traces.format import Scale, Session, Shape
from stream2llm.workload.traces.generate import generate

_VOCAB_SIZE = 49_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """New documents: at the end, or as the whole list."""

    at_s: float
    replaces: bool
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One session, as its client sends it."""

    name: str
    shape: Shape
    prefix: list[int]
    suffix: list[int]
    documents: dict[str, list[int]]
    arrivals: tuple[Arrival, ...]
    seal_s: float

    def sequences(self) -> Iterator[tuple[float, list[int]]]:
        """The context after each arrival, with its time; the prefix first."""
        names: tuple[str, ...] = ()
        yield 0.0, list(self.prefix)
        for arrival in self.arrivals:
            names = arrival.names if arrival.replaces else names + arrival.names
            tokens = [token for name in names for token in self.documents[name]]
            yield arrival.at_s, [*self.prefix, *tokens]

    @property
    def prompt(self) -> list[int]:
        """The sealed sequence."""
        *_, (_, last) = self.sequences()
        return [*last, *self.suffix]

    def num_settled_tokens(self, at_s: float) -> int:
        """How much of the prompt stood where it stands at the seal, and stayed from then on."""
        prompt = as_tokens(self.prompt)
        before = [tokens for since_s, tokens in self.sequences() if since_s <= at_s]
        after = [tokens for since_s, tokens in self.sequences() if since_s > at_s]
        return min(common_prefix_len(as_tokens(each), prompt) for each in [before[-1], *after])


def questions(
    shape: Shape, count: int, num_tokens: int, duration_s: float, seed: int, salt: str = ""
) -> list[Question]:
    """Sessions of one shape; contexts of `num_tokens` at most, the last document after `duration_s`.

    The seed decides sizes and times, the salt makes the token ids others.
    """
    sessions = generate(shape, [0.0] * count, seed, Scale())
    return [_question(each, shape, num_tokens, duration_s, f"{seed}/{salt}") for each in sessions]


def _question(
    session: Session, shape: Shape, num_tokens: int, duration_s: float, seed: str
) -> Question:
    rng = random.Random(f"{shape}/{num_tokens}/{seed}/{session.id}")
    sizes = {document.id: document.num_tokens for document in session.documents}
    # Of the longest list, which need not be the last: every one has to fit the model.
    factor = num_tokens / max(sum(sizes[name] for name in names) for names in session.lists())
    last_s = max(session.events[-1].at_s, 1e-3)
    return Question(
        name=f"{shape}-{num_tokens}-{seed}-{session.id}",
        shape=shape,
        prefix=_tokens(rng, session.prefix.num_tokens),
        suffix=_tokens(rng, session.suffix.num_tokens),
        documents={n: _tokens(rng, max(round(s * factor), 1)) for n, s in sizes.items()},
        arrivals=tuple(
            Arrival(each.at_s / last_s * duration_s, each.kind == "update", each.documents)
            for each in session.events
            if each.kind != "seal"
        ),
        seal_s=duration_s,
    )


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, _VOCAB_SIZE) for _ in range(count)]
