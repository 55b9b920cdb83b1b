"""The demo's last act: fifty sessions at once, by one policy and then by another.

Every tenth context is long. First come, first served, a short one waits for all long ones
before it; shortest remaining first, it does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles

from stream2llm.api.errors import InternalError
from stream2llm.client import AsyncClient, SamplingParameters, TokenDelta
from stream2llm.serving.system.clock import Clock

NUM_SESSIONS = 50
LONG_EVERY = 10
# All short ones together fit into one step of a small token budget.
SHORT_WORDS = 5
SHORT_TOKENS = 10  # with a beginning of its own
# Each policy may compute for this long at the speed seen before: long contexts are made of
# what the short ones leave of it.
POLICY_S = 12.0
MIN_LONG_WORDS, MAX_LONG_WORDS = 100, 600
ONE_TOKEN = SamplingParameters(max_tokens=1, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Crowd:
    """TTFT under one policy: quantiles of the seconds from seal to first token."""

    policy: str
    p50_s: float
    p95_s: float


def contexts(tokens_per_s: float) -> list[str]:
    """The contexts in the order of their arrival."""
    num_long = NUM_SESSIONS // LONG_EVERY
    left = POLICY_S * tokens_per_s - (NUM_SESSIONS - num_long) * SHORT_TOKENS
    long_words = min(MAX_LONG_WORDS, max(MIN_LONG_WORDS, int(left / num_long)))
    sizes = (SHORT_WORDS if n % LONG_EVERY else long_words for n in range(NUM_SESSIONS))
    return [" the" * size for size in sizes]


async def ask_at_once(address: str, policy: str, texts: Sequence[str], clock: Clock) -> Crowd:
    """A session for each text, all at the same time; each policy has beginnings of its own."""
    async with AsyncClient(address) as client:
        waits_s = await asyncio.gather(
            *(_wait_s(client, f"{policy} {n}:", text, clock) for n, text in enumerate(texts))
        )
    cuts_s = quantiles(waits_s, n=20)
    return Crowd(policy, cuts_s[9], cuts_s[18])


async def _wait_s(client: AsyncClient, prefix: str, text: str, clock: Clock) -> float:
    async with client.session(prefix=prefix, sampling=ONE_TOKEN) as session:
        await session.append(text)
        sealed_s = clock.monotonic_s()
        async for event in session.seal():
            if isinstance(event, TokenDelta):
                return clock.monotonic_s() - sealed_s
    raise InternalError("the answer has no token")
