"""A prefill and a decode scheduler, both real, with fake executors and a router's memory between.

KV is digests (executor.py). A read copies prefill's blocks as they are when the
read ends, so blocks that were freed under it bring something else. The worker's
half of the connector is played as it is: it tells prefill when a read has ended,
or that there is none, and fails one that ended after its lease. The router's
decisions are those of its own log (router/kv_prefetch_log.py); this carries them out, as
late as the caller likes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from vllm import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus

from decode_worker.answer_order import LAST_RANK
from decode_worker.digest_check import BadKv
from decode_worker.fetch_orders import (
    FetchEnd,
    FetchOrder,
    FetchResult,
    FinalOrder,
    LocalTokens,
    order_to_wire,
)
from prefill_worker import blocks
from prefill_worker.local_engine import core_request
from prefill_worker.session_state import WIRE_KEY
from router.kv_prefetch_log import Fetch, KvPrefetchLog, Offered, OfferVerdict
from stream2llm.api.handover import HANDOVER_KEY
from stream2llm.engine.kv_digest import BlockKeys, Part, SampleJob
from stream2llm.engine.kv_sampling import SampleMeta
from stream2llm.serving.sessions.prefix import as_tokens
from stream2llm.serving.system.clock import ManualClock
from tests.digests import STOP_TOKEN, answer_of, prefix_digests
from tests.scheduling.decode_settings import create_decode_scheduler
from tests.scheduling.driver import SchedulerDriver
from tests.scheduling.engine_settings import EngineSettings, block_hasher, worker_options
from tests.scheduling.executor import KV, FakeExecutor, LeaseHolder, sample


@dataclass
class _Read:
    """A read under way at the worker of a decode engine."""

    request_id: str
    remote_id: str
    local: list[int]
    remote: list[int]
    steps_left: int
    job: SampleJob | None


def overwrite(kv: KV, block_id: int) -> None:
    """Puts KV of something else into a block."""
    kv[block_id] = [hash((block_id, slot, "other")) for slot in range(len(kv[block_id]))]


class ReadingExecutor(FakeExecutor):
    """A decode engine's worker: reads from another executor's blocks."""

    def __init__(self, settings: EngineSettings, source: FakeExecutor, read_steps: int) -> None:
        super().__init__(settings.num_blocks, settings.block_size)
        self._source = source
        self._read_steps = read_steps
        self.fails = False
        # Called with the KV and the blocks of each read that has ended, before they are sampled.
        self.corrupt: Callable[[KV, list[int]], None] | None = None
        self.reads: list[_Read] = []
        self.num_blocks_read = 0

    def _take_metadata(self, metadata: Any) -> None:
        for request_id, meta in metadata.reqs_to_recv.items():
            local = list(meta.local_block_ids[0]) if meta.local_block_ids else []
            if not local:
                assert not meta.awaiting_kvs
                self._source.leases.end(meta.remote.request_id)
                continue
            remote = list(meta.remote.block_ids[0])
            assert len(local) <= len(remote), "more is read than was offered"
            self.reads.append(
                _Read(
                    request_id,
                    meta.remote.request_id,
                    local,
                    remote[-len(local) :],
                    self._read_steps,
                    metadata.stream2llm_jobs.get(request_id),
                )
            )

    def _report(self, metadata: Any) -> KVConnectorOutput | None:
        ended = [read for read in self.reads if not read.steps_left]
        self.reads = [read for read in self.reads if read.steps_left]
        for read in self.reads:
            read.steps_left -= 1
        if not ended:
            return None
        invalid = {block for read in ended if not self._end(read) for block in read.local}
        parts = {
            read.request_id: [Part(0, sample(self.kv, read.job))]
            for read in ended
            if read.job is not None and not set(read.local) & invalid
        }
        return KVConnectorOutput(
            finished_recving={read.request_id for read in ended},
            failed_recving={read.request_id for read in ended if set(read.local) & invalid},
            invalid_block_ids=invalid,
            kv_connector_worker_meta=SampleMeta(parts),
        )

    def _end(self, read: _Read) -> bool:
        """Copies; whether what came is what was asked for."""
        if self.fails:
            return False
        for local, remote in zip(read.local, read.remote, strict=True):
            self.kv[local] = list(self._source.kv[remote])
        if self.corrupt is not None:
            self.corrupt(self.kv, read.local)
        self.num_blocks_read += len(read.local)
        in_time = is_leased(self._source.leases, read.remote_id)
        self._source.leases.end(read.remote_id)
        return in_time


def is_leased(leases: LeaseHolder, remote_id: str) -> bool:
    """Whether the lease lasts, or prefill's worker has yet to hear of it."""
    return remote_id in leases.held or remote_id not in leases.ended


class _Abort:
    """The fetch under way is in vain."""


@dataclass
class Streamed:
    """A session at its router."""

    log: KvPrefetchLog[dict[str, Any]] = field(default_factory=KvPrefetchLog)
    # What was sent to decode and has not arrived, oldest first.
    under_way: deque[Fetch[dict[str, Any]] | _Abort] = field(default_factory=deque)
    num_fetches: int = 0
    # The fetch that decode knows of; empty when there is none.
    fetch_id: str = ""
    # The hand-over after the first token, until decode has it.
    final: dict[str, Any] | None = None
    results: list[FetchResult] = field(default_factory=list)
    # Since when its KV lies at decode unused.
    since_s: float = 0.0
    cache_salt: str = ""

    def send_next(self) -> None:
        """Sends decode the next fetch, if it is time for one."""
        fetch = self.log.next()
        if fetch is not None:
            self.under_way.append(fetch)

    def end_fetch(self) -> None:
        """The fetch at decode has ended, however, or will never get there."""
        self.fetch_id = ""
        self.under_way.clear()
        if self.log.at_decode is not None:
            self.log.ended(self.log.at_decode)
        self.send_next()

    @property
    def has_fetch_under_way(self) -> bool:
        return self.log.at_decode is not None and self.log.at_decode in self.under_way


class Pair:
    """Calls are made between steps."""

    def __init__(
        self,
        prefill: EngineSettings | None = None,
        decode: EngineSettings | None = None,
        *,
        read_steps: int = 1,
    ) -> None:
        prefill = prefill or EngineSettings(options=worker_options(min_offer_tokens=8))
        self._decode_settings = decode or EngineSettings()
        self._read_steps = read_steps
        self.clock = ManualClock()
        self.prefill = SchedulerDriver(prefill, streams=True)
        self.sessions: dict[str, Streamed] = {}
        # Decode's answers by session; and how many prompt tokens were there before.
        self.answers: dict[str, list[int]] = {}
        self.local_tokens: dict[str, int] = {}
        # Answers that decode gave up: their KV could not be read.
        self.failed: set[str] = set()
        # Requests whose read brought other KV, and whether the test has seen to that.
        self.bad_reads: list[str] = []
        self.may_differ = False
        self._num_seen = 0
        self._hasher = block_hasher(prefill)
        self._meaning: dict[bytes, int] = {}
        self.start_decode()

    def start_decode(self) -> None:
        """A new engine; whatever another one had is gone."""
        with mock.patch("decode_worker.fetching.SystemClock", return_value=self.clock):
            self.decode = create_decode_scheduler(self._decode_settings)
        self.reader = ReadingExecutor(
            self._decode_settings, self.prefill.executor, self._read_steps
        )

    # -- events ----------------------------------------------------------------------

    def open(
        self, name: str, prefix: list[int] | tuple[int, ...] = (), cache_salt: str = ""
    ) -> None:
        """Begins a session that streams its hand-over."""
        self.sessions[name] = Streamed(since_s=self.clock.monotonic_s(), cache_salt=cache_salt)
        self.prefill.open(name, prefix, hand_over=True, cache_salt=cache_salt)
        revision = self.prefill.sessions[name].revision
        self.sessions[name].log.spliced(revision, 0, as_tokens(prefix))

    def become(self, name: str, tokens: list[int]) -> None:
        """The sequence is now this."""
        old = self.prefill.sessions[name].tokens
        self.prefill.become(name, list(tokens))
        same = next(
            (i for i, (a, b) in enumerate(zip(old, tokens, strict=False)) if a != b),
            min(len(old), len(tokens)),
        )
        revision, session = self.prefill.sessions[name].revision, self.sessions[name]
        spliced = session.log.spliced(revision, same, as_tokens(tokens))
        for params in spliced.released:
            self.release(params)
        if spliced.aborts:
            session.under_way.append(_Abort())

    def seal(self, name: str, suffix: tuple[int, ...] = ()) -> None:
        """Complete."""
        session = self.prefill.sessions[name]
        session.sealed = True
        self.become(name, session.tokens + list(suffix))

    def release(self, params: dict[str, Any]) -> None:
        """Releases a hand-over that will not be read."""
        self.prefill.executor.leases.end(params["remote_request_id"])

    def cancel(self, name: str) -> None:
        """The client is gone."""
        session = self.sessions.pop(name)
        unread = [*session.log.close()]
        unread += [each.handover for each in session.under_way if isinstance(each, Fetch)]
        unread += [session.final] if session.final is not None else []
        for params in unread:
            self.release(params)
        self.prefill.cancel(name)
        requests = [name, session.fetch_id] if session.fetch_id else [name]
        self.decode.finish_requests(requests, RequestStatus.FINISHED_ABORTED)

    def kill_decode(self) -> None:
        """Its reads end with it, without a notice to prefill; what it never got goes to the next."""
        for session in self.sessions.values():
            fetch = session.log.at_decode
            if fetch is None:
                continue
            if not session.has_fetch_under_way:
                session.end_fetch()
            elif session.log.is_in_vain(fetch):
                self.release(fetch.handover)
                session.end_fetch()
        self.decode.shutdown()
        self.start_decode()

    def corrupt_reads(self, corrupt: Callable[[KV, list[int]], None] | None) -> None:
        """From now on this happens to what decode reads; None: nothing."""
        self.reader.corrupt = corrupt
        self.may_differ = self.may_differ or corrupt is not None

    def refuse(self, name: str) -> None:
        """Decode refuses the fetch that is under way to it, as a worker that drains does."""
        session = self.sessions[name]
        if session.has_fetch_under_way:
            self.release(session.log.at_decode.handover)
            session.end_fetch()

    def deliver(self, name: str) -> None:
        """The oldest message that the router has for decode arrives."""
        session = self.sessions[name]
        if not session.under_way:
            self.deliver_final(name)
            return
        message = session.under_way.popleft()
        if isinstance(message, Fetch):
            self._fetch(name, message)
        elif session.fetch_id:
            self.decode.finish_requests([session.fetch_id], RequestStatus.FINISHED_ABORTED)
            session.results.append(FetchResult(FetchEnd.ABORTED))
            session.end_fetch()

    def deliver_final(self, name: str) -> None:
        """The hand-over after the first token arrives, if there is one.

        It has an RPC of its own, so it may overtake the fetch and its abort.
        """
        session = self.sessions[name]
        if session.final is not None:
            params, session.final = session.final, None
            tokens = [*self.prefill.sessions[name].tokens, self.prefill.answers()[name][-1]]
            keys = BlockKeys(self._decode_settings.block_size).to_wire(tokens[:-1])
            self._add(name, name, tokens, order_to_wire(FinalOrder(name, keys)), params)

    def _fetch(self, name: str, fetch: Fetch[dict[str, Any]]) -> None:
        session = self.sessions[name]
        session.num_fetches += 1
        session.fetch_id = f"{name}/{session.num_fetches}"
        size = self._decode_settings.block_size
        to_fetch = self.tokens_to_fetch(name, fetch)
        keys = BlockKeys(size).to_wire(to_fetch)
        order = FetchOrder(name, fetch.what.num_tokens // size, session.since_s, keys)
        session.since_s = self.clock.monotonic_s()
        tokens = [*to_fetch, 0]
        self._add(name, session.fetch_id, tokens, order_to_wire(order), fetch.handover)

    def tokens_to_fetch(self, name: str, fetch: Fetch[dict[str, Any]]) -> list[int]:
        """The tokens of which the KV is, according to the router's message to decode."""
        return [int(token) for token in fetch.tokens]

    def _add(
        self,
        name: str,
        request_id: str,
        tokens: list[int],
        extra: dict[str, Any],
        params: dict[str, Any],
    ) -> None:
        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            stop_token_ids=[STOP_TOKEN],
            extra_args={**extra, "kv_transfer_params": dict(params)},
        )
        request = Request.from_engine_core_request(
            core_request(request_id, tokens, sampling, self.sessions[name].cache_salt), self._hasher
        )
        # As answers of three tenants have, whose sessions do not come in turn; then fetches.
        request.priority = 1 + sum(map(ord, name)) % 3 if request_id == name else LAST_RANK
        digests = prefix_digests(tokens)
        size = self._decode_settings.block_size
        for index, block_hash in enumerate(request.block_hashes):
            self._meaning[bytes(block_hash)] = digests[(index + 1) * size - 1]
        self.decode.add_request(request)

    # -- steps -------------------------------------------------------------------------

    def step_prefill(self) -> None:
        """One step of prefill, and what its router makes of the outputs."""
        self.prefill.step()
        new = self.prefill.outputs[self._num_seen :]
        self._num_seen = len(self.prefill.outputs)
        for output in new:
            self._take_prefill(output)

    def _take_prefill(self, output: EngineCoreOutput) -> None:
        session = self.sessions.get(output.request_id)
        params = output.kv_transfer_params or {}
        if HANDOVER_KEY in params:
            self._take_offer(session, params[HANDOVER_KEY])
            return
        if session is None:
            return
        progress = params.get(WIRE_KEY)
        if progress is not None:
            session.log.seen(progress["revision"])
        if params.get("do_remote_prefill"):
            session.final = {key: params[key] for key in params.keys() - {WIRE_KEY}}

    def _take_offer(self, session: Streamed | None, offer: dict[str, Any]) -> None:
        if session is None:
            self.release(offer["params"])
            return
        offered = Offered(offer["revision"], offer["num_tokens"])
        if session.log.offered(offered, offer["params"]) is OfferVerdict.STALE:
            self.release(offer["params"])
        session.send_next()

    def step_decode(self) -> None:
        """One step of decode, if it is not asleep."""
        if not self.decode.has_requests():
            return
        output: SchedulerOutput = self.decode.schedule()
        result = self.reader.execute(output)
        for client in self.decode.update_from_output(output, result).values():
            for told in client.outputs:
                self._take_decode(told)

    def _take_decode(self, told: EngineCoreOutput) -> None:
        if BadKv.from_wire(told.kv_transfer_params) is not None:
            self.bad_reads.append(told.request_id)
            assert self.may_differ, f"{told.request_id} has read what prefill computed"
        local = LocalTokens.from_wire(told.kv_transfer_params)
        if local is not None:
            self.local_tokens[told.request_id] = local.num_tokens
        if told.new_token_ids and "/" not in told.request_id:
            self.answers.setdefault(told.request_id, []).extend(told.new_token_ids)
        elif told.finish_reason is not None and told.request_id in self.sessions:
            self.failed.add(told.request_id)
        name, _, number = told.request_id.partition("/")
        session = self.sessions.get(name)
        if number and session is not None and told.finish_reason is not None:
            result = FetchResult.from_wire(told.kv_transfer_params)
            session.results.append(result or FetchResult(FetchEnd.FAILED))
            if session.fetch_id == told.request_id:
                session.end_fetch()

    def at_decode(self) -> list[str]:
        """Sessions whose answer decode has taken over and not given."""
        return [name for name in self.sessions if self.is_at_decode(name)]

    def is_at_decode(self, name: str) -> bool:
        """Whether decode's scheduler has a request of that name that has not ended."""
        held = {request.request_id for request in self.decode._held_finals.values()}
        return name in self.decode.requests or name in held

    def settle(self, max_steps: int = 200, *, expire: bool = False) -> None:
        """Steps both, delivers everything, until nothing is left to do.

        With `expire` leases end that no reader is known to end.
        """
        for number in range(max_steps):
            if expire and number % 20 == 19:
                self._expire()
            for name in list(self.sessions):
                self.deliver(name)
            if not self.prefill.has_work() and not self.decode.has_requests():
                return
            self._step()
        raise AssertionError(f"still busy: {list(self.decode.requests)}, {self.prefill.offered()}")

    def settle_once(self, times: int = 1) -> None:
        """Delivers everything and steps both, so many times."""
        for _ in range(times):
            for name in list(self.sessions):
                self.deliver(name)
            self._step()

    def _step(self) -> None:
        self.step_prefill()
        self.step_decode()
        self.clock.advance(0.1)
        self.check()

    def _expire(self) -> None:
        """Reads have ended by now, if there are any."""
        reading = {read.remote_id for read in self.reader.reads}
        for name in [*self.prefill.offered(), *self.prefill.leased()]:
            if name in self.prefill.leased() and name not in reading:
                self.prefill.end_lease(name, expired=True)

    # -- checks --------------------------------------------------------------------------

    def check(self) -> None:
        """Blocks of both workers, and whether what decode's cache offers is true."""
        self.prefill.check()
        self.check_decode()

    def check_decode(self) -> None:
        """The same of decode alone."""
        blocks.check_integrity(self.decode.kv_cache_manager)
        for block in self.decode.kv_cache_manager.block_pool.blocks:
            if block.block_hash is not None and not block.is_null:
                meaning = self._meaning[bytes(block.block_hash)[:-4]]
                assert self.reader.kv[block.block_id][-1] == meaning, "wrong KV in decode's cache"

    def check_empty(self) -> None:
        """Nothing is held at either worker."""
        self.prefill.check_empty()
        pool = self.decode.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == self._decode_settings.num_blocks - 1
        assert not self.decode.requests
        assert not list(self.decode.fetches())

    def is_exact(self, name: str) -> bool:
        """Whether decode's answer is that of the whole prompt; answers that prefill ended aside."""
        first = self.prefill.answers()[name]
        tokens = [*self.prefill.sessions[name].tokens, *first]
        if first[-1] == STOP_TOKEN:
            return name not in self.answers
        return self.answers.get(name) == [answer_of(tokens)]

    def close(self) -> None:
        """Ends both."""
        self.prefill.close()
        self.decode.shutdown()
