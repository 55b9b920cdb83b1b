"""Scheduling policies: which session is served first, and which is evicted last.

A policy is one function from a `RequestView` to a sortable key: the lower key is
served first. A new one is that function and its line in `POLICIES`, or an import
path in the configuration (policy_loading.py). Two things hold for every policy:
guarded sessions (starvation_guard.py) go before all others when it is their turn,
and those that would only restore KV they have lost go behind all others.

The order of eviction follows from the rank: open sessions with nothing new to
compute first, then open ones with new tokens, sealed ones last; inside a tier the
last in rank first, but among the idle ones a few whose loss costs little are
preferred (victims.py). Sessions that decode (a mixed worker's) are served before all
others, by arrival, and evicted after them. A policy that evicts in another order says so with a second
key, `keep`: the higher key goes first, and nothing else counts.

Keys must tell any two sessions apart (the arrival does), and may use only what
a view holds, because a session is ranked anew only when its view is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from prefill_worker.types import RequestView

RankKey = tuple[int, ...]
Rank = Callable[[RequestView], RankKey]


# Comes after every guarded session.
_NOT_GUARDED = 1 << 62
# Before every guarded session: who decodes keeps its KV longest.
_DECODES = 0


class Policy(NamedTuple):
    """How sessions are ordered."""

    name: str
    serve: Rank
    # Who keeps the KV longest; None derives it from `serve`.
    keep: Rank | None = None
    # Whether a step that computes for sealed sessions leaves open ones out. A client waits
    # for the end of that step, and open sessions would fill it up.
    keeps_sealed_apart: bool = False

    def serving_key(self, view: RequestView, has_claim: bool) -> RankKey:
        """The lower is served first; `has_claim` is the view's, which the caller has asked for."""
        return (not has_claim, *self.serve(view))

    def eviction_key(self, view: RequestView) -> RankKey:
        """The higher is evicted first."""
        guard_number = view.guard_number or _NOT_GUARDED
        if view.is_decoding:
            return (_DECODES, view.arrival)
        if self.keep is not None:
            return (guard_number, *self.keep(view))
        # Sealed; open with new tokens; open without.
        tier = 0 if view.sealed else 1 if view.has_claim else 2
        return (guard_number, tier, *self.serve(view))

    def may_swap_order(self, first: RequestView, second: RequestView) -> bool:
        """Whether the order in which these two are evicted says nothing.

        It is unknown which open session without new tokens is served next. Among
        the others, the last in rank will need its KV last.
        """
        if self.keep is not None or first.guard_number or second.guard_number:
            return False
        return not (first.sealed or second.sealed or first.has_claim or second.has_claim)


def default(view: RequestView) -> RankKey:
    """Stock vLLM: running sessions go on, others by arrival; blind to chunks."""
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


# How many tokens of others may be computed first, for each token of a sealed session's own.
SRPF_AGEING = 100
# The same for each token of an open session with a deadline, from its opening on: shortest
# first pays in an overload, and by arrival else, because who came first is sealed first.
OPEN_AGEING = 10


def srpf(view: RequestView) -> RankKey:
    """Sealed before open; sealed ones with little left first, all of them ageing alike.

    A sealed session whose deadline is lost goes behind open ones that have a deadline to
    keep, because what it takes from them it cannot use. Those open ones rank by what they
    have left, too: what is computed when the seal comes need not fit into its deadline.

    A sealed session ranks as if sealed `SRPF_AGEING` tokens of the worker's work
    later for each token it has left, so its wait is bounded in proportion to what it
    asks for. Work is its own clock: the order of two sessions that wait does not change
    while they do, so none is ranked anew, and what comes later than that cannot overtake.
    0 would be the order of seals, infinity shortest-first. With Poisson arrivals queues are
    short and anything above 5 is about the same; in bursts 6 is close to the order of seals,
    and above 100 the longest ones pay more than the others gain (docs/benchmark-results.md,
    "Bursts"). Open sessions by arrival: how long theirs will be is unknown.
    """
    if not view.sealed and not view.ttft_slo_ms:
        return (3, view.arrival)
    if not view.sealed:
        return (1, view.opening_work + OPEN_AGEING * view.num_wanted_tokens, view.arrival)
    rank = view.last_event_work + SRPF_AGEING * view.num_wanted_tokens
    return (2 if view.is_late else 0, rank, view.arrival)


POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("default", default, keep=newest_first_out),
        Policy("fcfs", fcfs),
        Policy("lcas", lcas),
        Policy("mcps", mcps),
        Policy("srpf", srpf, keeps_sealed_apart=True),
    )
}
