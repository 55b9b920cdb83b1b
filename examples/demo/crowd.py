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
# And takes no longer on a machine that others use meanwhile, or whose speed was seen wrong.
LIMIT_S = 15.0
MIN_LONG_WORDS, MAX_LONG_WORDS = 100, 600
ONE_TOKEN = SamplingParameters(max_tokens=1, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Crowd:
    """TTFT under one policy: the seconds from seal to first token of those that were answered."""

    policy: str
    waits_s: Sequence[float]
    # Sessions that were cancelled when the time was over.
    num_late: int

    def __str__(self) -> str:
        late = f"; {self.num_late} without an answer when time was over" if self.num_late else ""
        if len(self.waits_s) < 2:
            return f"{self.policy:8} no TTFT to compare{late}"
        cuts_s = quantiles(self.waits_s, n=20)
        p50_s, p95_s = cuts_s[9], cuts_s[18]
        return f"{self.policy:8} TTFT from seal: P50 {p50_s:.2f} s, P95 {p95_s:.2f} s{late}"


def contexts(tokens_per_s: float) -> list[str]:
    """The contexts in the order of their arrival."""
    num_long = NUM_SESSIONS // LONG_EVERY
    left = POLICY_S * tokens_per_s - (NUM_SESSIONS - num_long) * SHORT_TOKENS
    long_words = min(MAX_LONG_WORDS, max(MIN_LONG_WORDS, int(left / num_long)))
    sizes = (SHORT_WORDS if n % LONG_EVERY else long_words for n in range(NUM_SESSIONS))
    return [" the" * size for size in sizes]


async def ask_at_once(
    address: str, policy: str, texts: Sequence[str], clock: Clock, limit_s: float = LIMIT_S
) -> Crowd:
    """A session for each text, all at the same time; each policy has beginnings of its own.

    What has no answer within `limit_s` is cancelled.
    """
    waits_s: list[float] = []

    async def ask(client: AsyncClient, number: int) -> None:
        waits_s.append(await _wait_s(client, f"{policy} {number}:", texts[number], clock))

    try:
        async with asyncio.timeout(limit_s) as limit, AsyncClient(address) as client:
            await asyncio.gather(*(ask(client, number) for number in range(len(texts))))
    except TimeoutError:
        if not limit.expired():
            raise
    return Crowd(policy, waits_s, len(texts) - len(waits_s))


async def _wait_s(client: AsyncClient, prefix: str, text: str, clock: Clock) -> float:
    async with client.session(prefix=prefix, sampling=ONE_TOKEN) as session:
        await session.append(text)
        sealed_s = clock.monotonic_s()
        async for event in session.seal():
            if isinstance(event, TokenDelta):
                return clock.monotonic_s() - sealed_s
    raise InternalError("the answer has no token")
