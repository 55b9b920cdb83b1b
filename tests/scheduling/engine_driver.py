"""A `SessionDriver` over a real engine: the machine's tokens become real ones, the answers too.

Each of the machine's tokens stands for a run of `SPREAD` real tokens, so that
its short documents are longer than a block of 32 and fill 40 blocks quickly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

from prefill_worker.block_copy import BlockCopier
from prefill_worker.local_engine import LocalEngine
from prefill_worker.policy import POLICIES
from prefill_worker.session_state import ContextEvent
from prefill_worker.swap_connector import SwapConnector, find_connector
from prefill_worker.swap_jobs import JobResults, StepJobs
from stream2llm.serving.sessions.prefix import common_prefix_len
from tests.reference_engine import ReferenceEngine
from tests.session_machine import DriverLimits, Tokens

SPREAD = 16
_FIRST_TOKEN_ID = 1000


def spread(tokens: Sequence[int]) -> list[int]:
    """Real token ids for the machine's."""
    return [_FIRST_TOKEN_ID + SPREAD * token + i for token in tokens for i in range(SPREAD)]


class UnreliableCopier:
    """A real one that fails on demand."""

    def __init__(self, real: BlockCopier) -> None:
        self._real = real
        self.fails = False
        self._failed = JobResults()

    def start(self, jobs: StepJobs) -> None:
        if not self.fails:
            return self._real.start(jobs)
        for job in (*jobs.outs, *jobs.ins):
            self._failed.num_ranks_done[job.number] = 1
            self._failed.failures[job.number] = "injected"

    def take_results(self, *, wait: bool) -> JobResults:
        results, failed, self._failed = (
            self._real.take_results(wait=wait),
            self._failed,
            JobResults(),
        )
        results.num_ranks_done |= failed.num_ranks_done
        results.failures |= failed.failures
        return results


class EngineDriver:
    """Runs sessions on an engine that outlives it; leaves it empty."""

    policies = tuple(POLICIES)

    def __init__(
        self, engine: LocalEngine, reference: ReferenceEngine, num_answer_tokens: int = 1
    ) -> None:
        """With more than one token, sessions are answered here, as on a mixed worker."""
        self._num_answer_tokens = num_answer_tokens
        self._engine = engine
        self._reference = reference
        self._pool = engine.scheduler.kv_cache_manager.block_pool
        self._documents: dict[str, list[Tokens]] = {}
        self._prefix: dict[str, Tokens] = {}
        self._told: dict[str, list[int]] = {}
        self._revision: dict[str, int] = {}
        self._answers: dict[str, list[int]] = {}
        self._taken: list[object] = []
        self.num_steps = 0
        # For the end: the next user finds the engine as it was.
        self._policy = engine.scheduler._table.policy.name

    @property
    def limits(self) -> DriverLimits:
        in_memory = (len(self._pool.blocks) - 1) * self._engine.scheduler.block_size
        step = self._engine.scheduler.max_num_scheduled_tokens
        # One token of the answer needs a place too.
        return DriverLimits(max_tokens=(in_memory - 1) // SPREAD, token_budget=step // SPREAD)

    def open(self, name: str, prefix: Tokens, *, hand_over: bool) -> None:
        self._documents[name], self._prefix[name] = [], prefix
        self._become(name, spread(prefix))

    def append(self, name: str, documents: Sequence[Tokens]) -> None:
        self.update(name, [*self._documents[name], *documents])

    def update(self, name: str, documents: Sequence[Tokens]) -> None:
        self._documents[name] = list(documents)
        self._become(name, spread(sum(documents, self._prefix[name])))

    def seal(self, name: str, suffix: Tokens) -> None:
        self._become(name, self._told[name] + spread(suffix), seal=True)

    def _become(self, name: str, tokens: list[int], *, seal: bool = False) -> None:
        old = self._told.get(name, [])
        self._told[name] = tokens
        begins = name not in self._revision
        if begins and not tokens:
            return
        self._revision[name] = self._revision.get(name, 0) + 1
        keep = common_prefix_len(old, tokens)
        answers = seal and self._num_answer_tokens > 1
        event = ContextEvent(self._revision[name], keep, seal, begins, answers=answers)
        sampling = {"max_tokens": self._num_answer_tokens, "ignore_eos": True} if answers else {}
        self._engine.add(name, tokens[keep:], event, **sampling)

    def cancel(self, name: str) -> None:
        self._engine.cancel(name)

    def has_work(self) -> bool:
        return bool(self._engine.scheduler.has_unfinished_requests())

    def step(self, cancel: str | None = None) -> None:
        before_update = partial(self.cancel, cancel) if cancel else None
        self.num_steps += 1
        for output in self._engine.step(before_update):
            if output.new_token_ids:
                self._answers.setdefault(output.request_id, []).extend(output.new_token_ids)

    def take_blocks(self, num_blocks: int) -> None:
        num_free = self._pool.get_num_free_blocks()
        self._taken.extend(self._pool.get_new_blocks(min(num_blocks, num_free)))

    def return_blocks(self) -> None:
        self._pool.free_blocks(self._taken)
        self._taken = []

    def set_policy(self, policy: str) -> None:
        self._engine.scheduler.set_policy(policy)

    def swaps_fail(self, fail: bool) -> None:
        connector = find_connector(
            get_kv_transfer_group() if has_kv_transfer_group() else None, SwapConnector
        )
        if connector is not None:
            assert connector._copier is not None
            if not isinstance(connector._copier, UnreliableCopier):
                connector._copier = UnreliableCopier(connector._copier)
            connector._copier.fails = fail

    def leased(self) -> frozenset[str]:
        return frozenset()

    def end_lease(self, name: str, *, expired: bool) -> None:
        raise AssertionError("there is no hand-over here")

    def answers(self) -> Mapping[str, Sequence[int]]:
        return self._answers

    def one_shot_answer(self, tokens: Tokens) -> int:
        return self._reference.answer(spread(tokens), max_tokens=1)[0]

    def whole_answer(self, tokens: Tokens) -> list[int]:
        return self._reference.answer(spread(tokens), max_tokens=self._num_answer_tokens)

    def check(self) -> None:
        self._engine.scheduler.check_integrity([block.block_id for block in self._taken])

    def check_empty(self) -> None:
        assert self._pool.get_num_free_blocks() == len(self._pool.blocks) - 1
        assert not self._engine.scheduler.swapping.host.num_used
        while self._engine.scheduler.has_requests():  # the worker hears of ended ones
            self._engine.step()
        assert not self._engine.scheduler.requests

    def close(self) -> None:
        """Leaves the engine as it was found, also when Hypothesis gave an example up half-way."""
        self.swaps_fail(False)
        self.return_blocks()
        for name in self._told:
            self.cancel(name)
        while self._engine.scheduler.has_requests():
            self._engine.step()
        # Equal examples must behave alike, whatever came before them: Hypothesis relies on it.
        assert self._engine.scheduler.reset_prefix_cache()
        self.set_policy(self._policy)
