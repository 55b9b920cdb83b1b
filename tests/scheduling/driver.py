"""Drives the real `PrefillScheduler` with a fake executor: thousands of steps a second, no model.

Events travel as `prefill_worker/engine.py` sends them, in an engine's order:
requests are added between steps, a step is schedule, execute, update; aborts may
come in the middle of one. Steps are made only while the scheduler has requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm import SamplingParams
from vllm.v1.core.kv_cache_utils import get_block_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.request import Request, RequestStatus

from prefill_worker.local_engine import core_request
from prefill_worker.policy import POLICIES
from prefill_worker.report import SchedulerCommand, SchedulerReport
from prefill_worker.session_state import WIRE_KEY, ContextEvent
from stream2llm.api.handover import HANDOVER_KEY
from stream2llm.engine.cache_log import CACHE_KEY, CacheChange, CacheLog
from stream2llm.serving.sessions.prefix import common_prefix_len
from stream2llm.workload.document_orders import num_leading
from tests.builders import FrozenCosts, LinearCosts
from tests.digests import STOP_TOKEN, answer_of, prefix_digests
from tests.scheduling.engine_settings import EngineSettings, block_hasher, create_scheduler
from tests.scheduling.executor import FakeExecutor
from tests.session_machine import DriverLimits, Tokens

_HAND_OVER = {"do_remote_decode": True, "do_remote_prefill": False}
# One block is not worth its copies, two and more are.
COSTS = LinearCosts(token_s=1.0, block_s=0.5, copy_s=1.5)
# Request id of what stands for other people's hand-overs.
_SHORTAGE = "hand-over-of-another"
_CONTROL = "control"


@dataclass
class DrivenSession:
    """A session as its router and its worker's service remember it."""

    prefix: Tokens
    hand_over: bool
    documents: list[Tokens] = field(default_factory=list)
    # The tokens last sent to the scheduler.
    tokens: list[int] = field(default_factory=list)
    revision: int = 0
    begun: bool = False
    sealed: bool = False
    # Progress figures in the order in which they were reported.
    progress: list[dict[str, Any]] = field(default_factory=list)
    # Hand-overs offered ahead of the seal, in order.
    offers: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Lease:
    """A hand-over that has not been read yet."""

    block_ids: list[int]
    digests: list[int]


class SchedulerDriver:
    """A `SessionDriver` over our scheduler."""

    def __init__(
        self,
        settings: EngineSettings | None = None,
        *,
        load_delay_steps: int = 0,
        streams: bool = False,
    ) -> None:
        # Whether sessions hand over ahead of the seal all that they know.
        self.streams = streams
        self.settings = settings or EngineSettings()
        self.scheduler = create_scheduler(self.settings)
        self.scheduler.preempt_by(self.settings.options.prefill.preemption, FrozenCosts(COSTS))
        self.executor = FakeExecutor(
            self.settings.num_blocks,
            self.settings.block_size,
            self.settings.offload_pool_blocks,
            load_delay_steps,
            runner_slots=self.settings.step_requests if self.settings.has_runner_v2 else 0,
        )
        self._load_delay_steps = load_delay_steps
        self.sessions: dict[str, DrivenSession] = {}
        self._salts: dict[str, str] = {}
        self.outputs: list[EngineCoreOutput] = []
        # What came back on the control channel.
        self.reports: list[SchedulerReport] = []
        self.last_step: SchedulerOutput | None = None
        # As the worker's process has it.
        self.cache = CacheLog()
        self._answers: dict[str, list[int]] = {}
        self._leases: dict[str, Lease] = {}
        self._hasher = block_hasher(self.settings)
        self._num_shortages = 0
        self._shortages: set[str] = set()
        # Which prefix a block hash stands for, as far as any session showed it.
        self._hash_meaning: dict[Any, int] = {}

    # -- the machine's side: events ---------------------------------------------

    @property
    def limits(self) -> DriverLimits:
        settings = self.settings
        in_memory = (settings.num_blocks - 1) * settings.block_size
        longest = min(settings.max_model_len - 1, in_memory)
        load_steps = 1 + self._load_delay_steps if settings.offload_pool_blocks else 0
        return DriverLimits(longest, settings.token_budget, load_steps=load_steps)

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(POLICIES)

    def open(
        self, name: str, prefix: Sequence[int], *, hand_over: bool = False, cache_salt: str = ""
    ) -> None:
        self._salts[name] = cache_salt
        self.sessions[name] = DrivenSession(tuple(prefix), hand_over and self.settings.leases)
        self.become(name, list(prefix))

    def append(self, name: str, documents: Sequence[Tokens]) -> None:
        self.update(name, self.sessions[name].documents + list(documents))

    def update(self, name: str, documents: Sequence[Tokens]) -> None:
        session = self.sessions[name]
        old, session.documents = session.documents, list(documents)
        keep = None
        if session.revision % 2:
            # Less than there is in common is allowed, too: whole documents only.
            same = num_leading(old, session.documents)
            keep = len(session.prefix) + sum(map(len, session.documents[:same]))
        self.become(name, list(sum(documents, session.prefix)), keep_tokens=keep)

    def seal(self, name: str, suffix: Sequence[int] = ()) -> None:
        session = self.sessions[name]
        session.sealed = True
        self.become(name, session.tokens + list(suffix))

    def become(self, name: str, tokens: list[int], keep_tokens: int | None = None) -> None:
        """The sequence is now this; by default, all that is common is kept."""
        session = self.sessions[name]
        session.revision += 1
        if keep_tokens is None:
            keep_tokens = common_prefix_len(session.tokens, tokens)
        session.tokens = tokens
        if session.begun or tokens:
            event = ContextEvent(
                session.revision,
                keep_tokens,
                session.sealed,
                begins=not session.begun,
                stable_tokens=self.stable_tokens(session),
            )
            self.send(name, tokens[keep_tokens:], event)
            session.begun = True

    def stable_tokens(self, session: DrivenSession) -> int:
        """How much of its present sequence is not expected to change."""
        return len(session.tokens) if self.streams and session.hand_over else 0

    def send(self, name: str, tail: list[int], event: ContextEvent) -> None:
        """An event as it reaches EngineCore."""
        extra: dict[str, Any] = {WIRE_KEY: event.to_wire()}
        if event.seal and self.sessions[name].hand_over:
            extra["kv_transfer_params"] = dict(_HAND_OVER)
        self.add_request(name, tail, extra)

    def add_request(
        self, name: str, tokens: list[int], extra_args: dict[str, Any] | None, max_tokens: int = 1
    ) -> None:
        """What EngineCore does with a request of its front end."""
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0,
            stop_token_ids=[STOP_TOKEN],
            extra_args=extra_args,
        )
        request = core_request(name, tokens, params, self._salts.get(name, ""))
        self.scheduler.add_request(Request.from_engine_core_request(request, self._hasher))

    def command(self, number: int, set_policy: str | None = None) -> None:
        """Over the control channel; the next step answers."""
        self.add_request(_CONTROL, [1], {WIRE_KEY: SchedulerCommand(number, set_policy).to_wire()})

    def cancel(self, name: str) -> None:
        self.scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)
        self.sessions.pop(name, None)
        self._leases.pop(name, None)

    # -- steps --------------------------------------------------------------------

    def has_work(self) -> bool:
        return bool(self.scheduler.has_requests())

    def step(self, cancel: str | None = None) -> None:
        if not self.scheduler.has_requests():
            return
        output = self.last_step = self.scheduler.schedule()
        self._check_step(output)
        result = self.executor.execute(output)
        if cancel is not None:
            self.cancel(cancel)
        held = {*self.scheduler.requests, *self.offered()}
        self._leases = {name: lease for name, lease in self._leases.items() if name in held}
        by_client = self.scheduler.update_from_output(output, result)
        for client_outputs in by_client.values():
            for told in client_outputs.outputs:
                self._take(told)
            self._take_cache_change(client_outputs.scheduler_stats)
        if not self.scheduler.kv_cache_manager.block_pool.kv_event_queue:  # else with the next step
            assert self.cache.held == self.cached_hashes()

    def _take_cache_change(self, stats: Any) -> None:
        told = (stats.kv_connector_stats or {}) if stats is not None else {}
        if CACHE_KEY in told:
            self.cache.apply(CacheChange.from_wire(told[CACHE_KEY]))

    def cached_hashes(self) -> set[int]:
        """What the engine's prefix cache has now, as workers tell it."""
        pool = self.scheduler.kv_cache_manager.block_pool
        keys = pool.cached_block_hash_to_block._cache
        return {int.from_bytes(get_block_hash(key)[-8:], "big") for key in keys}

    def run(self, max_steps: int = 1000) -> int:
        """Steps until there is nothing to compute; how many it took."""
        for num_steps in range(max_steps):
            if not self.scheduler.has_unfinished_requests():
                return num_steps
            self.step()
            self.check()
        raise AssertionError(f"still busy after {max_steps} steps")

    def run_until_answered(self, names: Iterable[str], max_steps: int = 200) -> int:
        """Steps until all of these are answered, with readers that are quick; how many it took."""
        waiting = set(names)
        for num_steps in range(max_steps):
            waiting -= self._answers.keys()
            if not waiting:
                return num_steps
            for name in self.leased():
                self.end_lease(name, expired=False)
            self.step()
            self.check()
        raise AssertionError(f"{waiting} did not end within {max_steps} steps")

    def is_exact(self, name: str) -> bool:
        """Whether it was answered once, as in one shot."""
        return list(self._answers[name]) == [answer_of(self.sessions[name].tokens)]

    def _take(self, told: EngineCoreOutput) -> None:
        self.outputs.append(told)
        params = dict(told.kv_transfer_params or {})
        progress = params.pop(WIRE_KEY, None)
        if told.request_id == _CONTROL:
            report = SchedulerReport.from_wire(progress)
            assert report is not None
            self.reports.append(report)
        session = self.sessions.get(told.request_id)
        if session is None:
            return
        if progress is not None:
            self._check_progress(session, progress)
        if HANDOVER_KEY in params:
            self._take_offer(session, params.pop(HANDOVER_KEY))
        if told.new_token_ids:
            self._answers.setdefault(told.request_id, []).extend(told.new_token_ids)
            self._take_hand_over(told.request_id, session, params)

    def offered(self) -> list[str]:
        """Offers that hold blocks."""
        return [offer.offer_id for offer in self.scheduler.offering.table.offers()]

    def _take_offer(self, session: DrivenSession, offer: dict[str, Any]) -> None:
        """An offer is a lease on full blocks of the session's own tokens."""
        session.offers.append(offer)
        params, num_tokens = offer["params"], offer["num_tokens"]
        block_ids = list(params["remote_block_ids"][0])
        assert offer["revision"] == session.revision
        assert params["remote_num_tokens"] == num_tokens
        assert num_tokens == len(block_ids) * self.settings.block_size
        digests = prefix_digests(session.tokens)[:num_tokens]
        assert len(digests) == num_tokens, "more is offered than there is"
        self._leases[params["remote_request_id"]] = Lease(block_ids, digests)

    def _take_hand_over(self, name: str, session: DrivenSession, params: dict[str, Any]) -> None:
        stopped = self._answers[name][-1] == STOP_TOKEN
        assert bool(params.get("do_remote_prefill")) == (session.hand_over and not stopped)
        if params.get("do_remote_prefill"):
            assert params["remote_num_tokens"] == len(session.tokens)
            block_ids = list(params["remote_block_ids"][0])
            self._leases[name] = Lease(block_ids, prefix_digests(session.tokens))

    # -- memory and policy ------------------------------------------------------------

    def take_blocks(self, num_blocks: int) -> None:
        pool = self.scheduler.kv_cache_manager.block_pool
        num_blocks = min(num_blocks, pool.get_num_free_blocks())
        if not num_blocks:
            return
        self._num_shortages += 1
        name = f"{_SHORTAGE}-{self._num_shortages}"
        request = Request(name, [0], SamplingParams(max_tokens=1), None)
        request.status = RequestStatus.FINISHED_LENGTH_CAPPED
        group = self.scheduler.kv_cache_manager.coordinator.single_type_managers[0]
        group.req_to_blocks[name] = pool.get_new_blocks(num_blocks)
        self.scheduler.requests[name] = request
        self._shortages.add(name)

    def return_blocks(self) -> None:
        for name in self._shortages:
            self.scheduler._free_blocks(self.scheduler.requests[name])
        self._shortages.clear()

    def set_policy(self, policy: str) -> None:
        self.scheduler.set_policy(policy)

    def swaps_fail(self, fail: bool) -> None:
        self.executor.copier.fails = fail

    def leased(self) -> frozenset[str]:
        return frozenset(self._leases)

    def end_lease(self, name: str, *, expired: bool) -> None:
        # To the scheduler both are one: the worker reports the blocks as sent.
        if name in self.executor.leases.held or not expired:
            self.executor.leases.end(name)
            del self._leases[name]

    def close(self) -> None:
        self.scheduler.shutdown()

    # -- answers and checks -------------------------------------------------------------

    def answers(self) -> Mapping[str, Sequence[int]]:
        return self._answers

    def one_shot_answer(self, tokens: Sequence[int]) -> int:
        return answer_of(tokens)

    def _check_step(self, output: SchedulerOutput) -> None:
        """Invariants 4 and 5, for what the step is about to do."""
        self._learn_hashes()
        settings = self.settings
        num_tokens = output.num_scheduled_tokens
        assert sum(num_tokens.values()) == output.total_num_scheduled_tokens
        assert output.total_num_scheduled_tokens <= settings.token_budget
        assert len(num_tokens) <= settings.step_requests
        announced = [new.req_id for new in output.scheduled_new_reqs]
        # Once, and in one way.
        assert sorted([*announced, *output.scheduled_cached_reqs.req_ids]) == sorted(num_tokens)
        for name in num_tokens:
            session, request = self.sessions[name], self.scheduler.requests[name]
            # The base class has counted the step already.
            limit = len(session.tokens) - (not session.sealed)
            assert request.num_computed_tokens <= limit, f"{name} computes beyond {limit}"

    def _check_progress(self, session: DrivenSession, progress: dict[str, Any]) -> None:
        session.progress.append(progress)
        assert progress["revision"] <= session.revision
        assert 0 <= progress["prefilled_tokens"] <= progress["known_tokens"]
        for key in ("computed_tokens", "reused_tokens", "invalidated_tokens"):
            assert progress[key] >= 0
        assert progress["recomputed_tokens"] <= progress["computed_tokens"]

    def check(self) -> None:
        """Invariants 2, 5 and 6, for what lies between two steps."""
        self.scheduler.check_integrity()
        queues = (self.scheduler.waiting, self.scheduler.kv_holding_waiting)
        assert not self.scheduler.running
        assert not any(queues), "a session is in a queue of the base class between steps"
        self._check_live()
        self._check_hashes()
        for name, lease in self._leases.items():
            self.executor.assert_holds(f"lease of {name}", lease.block_ids, lease.digests)

    def _check_live(self) -> None:
        for name, session in self.sessions.items():
            request = self.scheduler.requests.get(name)
            if name in self._answers or request is None:
                assert name in self._answers or not session.begun, f"{name} is lost"
                continue
            assert list(request.all_token_ids) == session.tokens
            assert list(request.prompt_token_ids) == session.tokens
            computed = request.num_computed_tokens
            target = len(session.tokens) - (not session.sealed)
            assert computed <= max(target, 0)
            digests = prefix_digests(session.tokens)
            if target > 0 and not self.has_work():
                is_known = digests[target - 1] in self.executor.ever_computed
                assert is_known, f"{name}: new context was never computed"
            self.executor.assert_holds(name, self.table(name), digests[:computed])
            self._check_findable(name, computed)
            self._check_copies(name, digests, computed)
        self._check_rest()

    def _check_copies(self, name: str, digests: Sequence[int], num_computed: int) -> None:
        """Whatever is on the host is the KV of the session's own tokens, behind what is computed."""
        size = self.settings.block_size
        for index, slot in self.scheduler.swapping.host.copies(name).items():
            expected = list(digests[index * size : (index + 1) * size])
            assert (index + 1) * size < len(digests), f"{name}: no token is left to compute"
            assert index * size >= num_computed
            assert self.executor.copier.host[slot] == expected, f"{name}: wrong copy of {index}"

    def _check_rest(self) -> None:
        """Only an engine that could do nothing may sleep."""
        scheduler = self.scheduler
        if not scheduler.has_unfinished_requests():
            plan = scheduler.planning.plan()
            assert not plan.does_something, f"{plan} is possible, and no step is due"

    def _check_findable(self, name: str, num_computed: int) -> None:
        """With a prefix cache, all full blocks can be found by others."""
        if self.settings.prefix_caching:
            blocks = self.scheduler.kv_cache_manager.block_pool.blocks
            for block_id in self.table(name)[: num_computed // self.settings.block_size]:
                assert blocks[block_id].block_hash is not None, f"{name}: {block_id} is not cached"

    def _learn_hashes(self) -> None:
        """A block hash stands for one prefix, whichever session has it."""
        size = self.settings.block_size
        for request in self.scheduler.requests.values():
            digests = prefix_digests(request.all_token_ids)
            assert len(request.block_hashes) <= len(digests) // size
            for index, block_hash in enumerate(request.block_hashes):
                digest = digests[(index + 1) * size - 1]
                assert self._hash_meaning.setdefault(bytes(block_hash), digest) == digest

    def _check_hashes(self) -> None:
        """What the prefix cache offers under a hash is the KV of the prefix it stands for."""
        self._learn_hashes()
        for block in self.scheduler.kv_cache_manager.block_pool.blocks:
            if block.block_hash is not None:
                # Behind the hash stands the number of the KV cache group.
                meaning = self._hash_meaning[bytes(block.block_hash)[:-4]]
                assert self.executor.kv[block.block_id][-1] == meaning

    def table(self, name: str) -> list[int]:
        """Ids of the blocks a session holds."""
        group = self.scheduler.kv_cache_manager.coordinator.single_type_managers[0]
        return [block.block_id for block in group.req_to_blocks.get(name, ())]

    @property
    def num_free_blocks(self) -> int:
        free: int = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return free

    def check_empty(self) -> None:
        self.step()  # the worker hears of the last ones
        assert self.num_free_blocks == self.settings.num_blocks - 1
        assert not self.scheduler.swapping.host.num_used
        assert not self.scheduler.requests
        assert not self.scheduler.has_requests()
        assert not self.executor.requests
        assert not self.executor.leases.held
