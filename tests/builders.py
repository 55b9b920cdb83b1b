"""Values for tests, with defaults for all that a test does not care about."""

from __future__ import annotations

from prefill_worker.policy import POLICIES
from prefill_worker.rank_index import RankIndex
from prefill_worker.types import BlockLedger, RequestView, StepLimits


def a_request(
    request_id: str = "a",
    *,
    sealed: bool = False,
    arrival: int = 1,
    last_event: int = 1,
    known: int = 0,
    computed: int = 0,
    num_blocks: int = 0,
    reached: int = 0,
    promotion: int = 0,
) -> RequestView:
    """A session as the planner sees it."""
    return RequestView(
        request_id, sealed, arrival, last_event, known, computed, num_blocks, reached, promotion
    )


def a_ranking(*views: RequestView, policy: str = "fcfs", promoted_first: bool = False) -> RankIndex:
    """Those sessions, ranked."""
    ranking = RankIndex(POLICIES[policy])
    for view in views:
        ranking.put(view)
    ranking.promoted_first = promoted_first
    return ranking


def limits(
    *,
    tokens: int = 512,
    requests: int = 8,
    free_blocks: int = 1000,
    block_size: int = 32,
    whole_requests: bool = False,
) -> StepLimits:
    """What a step may use."""
    return StepLimits(tokens, requests, free_blocks, block_size, whole_requests)


def a_ledger(*, leased: tuple[int, ...] = (), **blocks: tuple[int, ...]) -> BlockLedger:
    """Who holds which blocks; a block's holders are those that name it."""
    counts: dict[int, int] = {}
    for ids in (leased, *blocks.values()):
        for block_id in ids:
            counts[block_id] = counts.get(block_id, 0) + 1
    return BlockLedger(blocks, counts)
