"""Rankings: who is served first, and who is evicted last.

A policy is one function from a view to a sortable key: the lower key is served
first. That is all a new policy needs, and its line in `POLICIES`. Two things
hold for every policy: promoted sessions (see patience.py) go before all others,
and those that would only restore KV they have lost go behind all others.

Who is evicted follows from the rank: open sessions with nothing new to compute
first, then open ones with new tokens, sealed ones last; inside a tier the last
in rank first. A policy that evicts in another order says so with a second key,
`keep`: the higher key goes first.

Keys must tell any two sessions apart (the arrival does), and may use only what
a view holds, because a session is ranked anew only when its view is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from prefill_worker.types import RequestView

RankKey = tuple[int, ...]
Rank = Callable[[RequestView], RankKey]


class Policy(NamedTuple):
    """How sessions are ordered."""

    name: str
    serve: Rank
    # Who keeps the KV longest; None derives it from `serve`.
    keep: Rank | None = None

    def serve_key(self, view: RequestView) -> RankKey:
        """The whole key: lower is served first."""
        return (view.promotion == 0, view.promotion, not view.has_claim, *self.serve(view))

    def keep_key(self, view: RequestView) -> RankKey:
        """The whole key: higher is evicted first."""
        if self.keep is not None:
            return (view.promotion == 0, view.promotion, *self.keep(view))
        return (view.promotion == 0, view.promotion, _tier(view), *self.serve(view))


def _tier(view: RequestView) -> int:
    """0 sealed, 1 open with new tokens, 2 open without."""
    if view.sealed:
        return 0
    return 1 if view.has_claim else 2


def default(view: RequestView) -> RankKey:
    """Stock vLLM: whoever runs goes on, others by arrival; blind to chunks."""
    return (view.num_blocks == 0, view.arrival)


def newest_first_out(view: RequestView) -> RankKey:
    """Stock vLLM evicts the newest of those that run."""
    return (view.arrival,)


def fcfs(view: RequestView) -> RankKey:
    """Sealed before open; among each by arrival."""
    return (not view.sealed, view.arrival)


def lcas(view: RequestView) -> RankKey:
    """Sealed before open; among each by arrival of the last chunk."""
    return (not view.sealed, view.last_event, view.arrival)


def mcps(view: RequestView) -> RankKey:
    """The session with the most tokens computed, then by arrival; no tiers."""
    return (-view.num_computed_tokens, view.arrival)


POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("default", default, keep=newest_first_out),
        Policy("fcfs", fcfs),
        Policy("lcas", lcas),
        Policy("mcps", mcps),
    )
}
