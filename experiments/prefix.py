"""What comparing long sequences costs: an update of 100,000 tokens whose last one differs."""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Sequence
from statistics import median

from experiments.stopwatch import Stopwatch
from stream2llm.serving.sessions.prefix import as_tokens, common_prefix_len

NUM_TOKENS = 100_000


def main(args: Namespace) -> Sequence[str]:
    """Prints the time for arrays, as the router holds them, and against a loop."""
    rng = random.Random(1)
    old = [rng.randrange(50_000) for _ in range(NUM_TOKENS)]
    new = [*old[:-1], old[-1] + 1]
    arrays = as_tokens(old), as_tokens(new)
    vectorized, looped = [], []
    for _ in range(30):
        with Stopwatch() as watch:
            assert common_prefix_len(*arrays) == NUM_TOKENS - 1
        vectorized.append(watch.seconds)
        with Stopwatch() as watch:
            same = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
        assert same == NUM_TOKENS - 1
        looped.append(watch.seconds)
    print(
        f"{NUM_TOKENS} tokens: {median(vectorized) * 1e6:.0f} us;"
        f" a loop takes {median(looped) / median(vectorized):.0f} times as long"
    )
    return ()
