"""Questions in the shape of the paper's crawler workload, in virtual seconds. Pure.

Log-normal lengths and gaps, fitted to the quantiles that the paper gives: 5,749
tokens at the median and 28,372 at P95, cut at 60,000; 8 chunks (1 to 17) with gaps
of 0.7 s at the median and 3.1 s at P95. The question comes with the last chunk.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

MEDIAN_TOKENS, TOKENS_SIGMA, MAX_TOKENS = 5749, 0.95, 60_000
MEAN_CHUNKS, CHUNKS_SIGMA, MAX_CHUNKS = 7.86, 3.0, 17
MEDIAN_GAP_S, GAP_SIGMA = 0.701, 0.9
QUESTION_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Chunk:
    """Context that a session gets, so many seconds after its beginning."""

    after_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Question:
    """One session; its last chunk seals it."""

    name: str
    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        """Of the whole prompt."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def seconds(self) -> float:
        """From the first chunk to the seal."""
        return self.chunks[-1].after_s


def questions(count: int, seed: int, token_scale: float = 1.0) -> list[Question]:
    """So many of them; `token_scale` fits them to a model with less context."""
    rng = random.Random(seed)
    return [_question(f"q{number}", rng, token_scale) for number in range(count)]


def _question(name: str, rng: random.Random, token_scale: float) -> Question:
    tokens = min(MEDIAN_TOKENS * rng.lognormvariate(0.0, TOKENS_SIGMA), MAX_TOKENS) * token_scale
    count = min(max(round(rng.gauss(MEAN_CHUNKS, CHUNKS_SIGMA)), 1), MAX_CHUNKS)
    weights = [rng.lognormvariate(0.0, 0.8) for _ in range(count)]
    lengths = [max(round(tokens * weight / sum(weights)), 1) for weight in weights]
    lengths[-1] += QUESTION_TOKENS
    gaps = [MEDIAN_GAP_S * rng.lognormvariate(0.0, GAP_SIGMA) for _ in range(count - 1)]
    times = accumulate(gaps, initial=0.0)
    return Question(name, tuple(map(Chunk, times, lengths)))


@dataclass(frozen=True, slots=True)
class Arrival:
    """A chunk of a session at a moment, in seconds or in engine steps."""

    at: float
    name: str
    num_tokens: int
    begins: bool
    seals: bool


def arrivals(asked: Sequence[Question], span: float, stretch: float, seed: int) -> list[Arrival]:
    """All chunks in order: questions begin at random within `span`, their gaps are stretched."""
    rng = random.Random(seed)
    found = []
    for question in asked:
        begin, chunks = rng.uniform(0.0, span), question.chunks
        for number, chunk in enumerate(chunks):
            at = begin + stretch * chunk.after_s
            is_last = number == len(chunks) - 1
            found.append(Arrival(at, question.name, chunk.num_tokens, number == 0, is_last))
    # A stable order: chunks of one session that come at once stay as they are.
    return sorted(found, key=lambda arrival: arrival.at)


def crowd(asked: Sequence[Question], span: float, num_open: float, seed: int) -> list[Arrival]:
    """The same, stretched until so many are open on average."""
    stretch = num_open * span / sum(question.seconds for question in asked)
    return arrivals(asked, span, stretch, seed)


def peak_tokens(of: Sequence[Arrival]) -> int:
    """Context of all that is open at once, at the worst moment."""
    held: dict[str, int] = {}
    total = peak = 0
    for arrival in of:
        held[arrival.name] = held.get(arrival.name, 0) + arrival.num_tokens
        total += arrival.num_tokens
        peak = max(peak, total)
        if arrival.seals:
            total -= held.pop(arrival.name)
    return peak
