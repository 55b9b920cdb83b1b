"""A crawl under memory pressure on a real engine: the workload, and one run of it.

A crawl in the shape of the paper's (documents of log-normal length, appended one
by one, many questions at a time) on a small random Llama, on KV memory for a few
of the sessions. Events come at given engine steps, not at given times, so every
way to preempt sees the same ones, and a busy machine changes nothing but the
seconds.

One engine plays many runs: between them the prefix cache is emptied, and a run
with less memory has the rest of the blocks allocated to no session. So the ways
can be interleaved within seconds of each other, where a shared machine is still
as fast as it was.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from multiprocessing import get_context
from statistics import mean, quantiles
from typing import Any, NamedTuple, TypeVar

from vllm.config import KVTransferConfig

from cost_profiles.correction import CorrectedCostModel
from experiments.stopwatch import Stopwatch
from experiments.token_sessions import TimedSplice, splices
from prefill_worker.kv_transfer import SWAP_ONLY
from prefill_worker.local_engine import LocalEngine
from prefill_worker.session_state import ContextEvent
from stream2llm.client import Document
from stream2llm.models.store import ensure_random_llama
from stream2llm.serving.settings.worker_options import WorkerOptions
from stream2llm.workload.replay.plan import PlannedSession, Step

T = TypeVar("T")

NUM_SESSIONS = 40
BLOCK_SIZE = 32
TOKEN_BUDGET = 512
MAX_MODEL_LEN = 4096
# Host memory for all that is ever evicted at once: what a pool that is too small
# costs is another question.
NUM_HOST_BLOCKS = 2000


def workload(seed: int) -> list[PlannedSession]:
    """Sessions whose times are engine steps: the first chunk opens one, the question seals it."""
    rng = random.Random(seed)
    sessions, begin = [], 0
    for number in range(NUM_SESSIONS):
        begin += round(rng.expovariate(1 / 5))
        step, num_chunks, sent = begin, rng.randint(3, 8), []
        for chunk in range(num_chunks + 1):
            length = 12 if chunk == num_chunks else min(round(rng.lognormvariate(5.0, 0.8)), 480)
            tokens = [rng.randrange(100, 30_000) for _ in range(length)]
            sent.append(Step(step, False, (Document(tokens, f"c{chunk}"),)))
            step += 1 + round(rng.expovariate(1 / 12))
        opening, *appends, seal = sent
        first, question = (each.documents[0].content or [] for each in (opening, seal))
        sessions.append(
            PlannedSession(f"s{number}", begin, first, tuple(appends), seal.due_s, question)
        )
    return sessions


class Coming(NamedTuple):
    """A change of a session, at the engine step `change.due_s`."""

    name: str
    revision: int
    change: TimedSplice

    @property
    def step(self) -> float:
        """The engine step before which it comes."""
        return self.change.due_s


def coming(sessions: Iterable[PlannedSession]) -> list[Coming]:
    """All changes as they come; those of one step in the order of the sessions."""
    found = [
        Coming(each.session_id, revision, change)
        for each in sessions
        for revision, change in enumerate(splices(each), 1)
    ]
    return sorted(found, key=lambda each: each.step)


def peak_blocks(sessions: Iterable[PlannedSession]) -> int:
    """KV of all that is open at once, were each chunk computed in the step it comes in."""
    held: dict[str, int] = {}
    peak = 0
    for _, batch in groupby(coming(sessions), key=lambda each: each.step):
        came = list(batch)
        held |= {each.name: -(-each.change.num_tokens // BLOCK_SIZE) for each in came}
        peak = max(peak, sum(held.values()))
        for each in came:
            if each.change.seals:
                del held[each.name]
    return peak


@dataclass(frozen=True, slots=True)
class Way:
    """How an engine preempts."""

    # As in `prefill.preemption`.
    mode: str = "recompute"
    whole_requests: bool = False
    policy: str = "fcfs"


RECOMPUTE, SWAP, COST = Way("recompute"), Way("swap"), Way("cost")
WHOLE = Way(whole_requests=True)
# Stock vLLM's order, and its way to preempt.
NAIVE = Way(whole_requests=True, policy="default")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run cost."""

    seconds: float
    # CPU seconds of this process: what `seconds` would be on a quiet machine.
    cpu_s: float
    steps: int
    # From the seal to the first token.
    mean_ttft_s: float
    p95_ttft_s: float
    # The scheduler's counters of this run.
    counted: Mapping[str, float]

    @property
    def recomputed(self) -> int:
        """Tokens computed again, because an eviction threw their KV away."""
        return int(self.counted["recomputed_tokens"])

    @property
    def preemptions(self) -> int:
        """Victims."""
        return int(self.counted["recompute_preemptions"] + self.counted["swap_preemptions"])

    @property
    def swapped_share(self) -> float:
        """Share of the victims whose KV went to the host."""
        return self.counted["swap_preemptions"] / max(self.preemptions, 1)


class PressureEngine:
    """An engine that plays runs with as much of its KV memory as each of them says."""

    def __init__(self, num_blocks: int, *, prefix_caching: bool) -> None:
        self._num_blocks = num_blocks
        self.local = LocalEngine(
            ensure_random_llama("fast"),
            block_size=BLOCK_SIZE,
            num_gpu_blocks_override=num_blocks + 1,  # one is vLLM's null block
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=TOKEN_BUDGET,
            max_num_seqs=32,
            enable_prefix_caching=prefix_caching,
            options=WorkerOptions(offload_pool_blocks=NUM_HOST_BLOCKS),
            kv_transfer_config=KVTransferConfig(**SWAP_ONLY),
        )

    def run(
        self,
        sessions: Sequence[PlannedSession],
        way: Way,
        num_blocks: int,
        costs: CorrectedCostModel | None = None,
    ) -> Outcome:
        """Plays the workload on so many blocks; `costs` are what the scheduler begins with."""
        scheduler = self.local.scheduler
        scheduler.set_policy(way.policy)
        scheduler.preempt_by(way.mode, costs)
        # Set when an engine starts; here one engine plays both.
        scheduler.planning.evicts_whole_requests = way.whole_requests
        before = asdict(scheduler.counters)
        with self._held_back(self._num_blocks - num_blocks):
            play = _Play(self.local, sessions)
            with Stopwatch() as watch:
                play.run()
        scheduler.check_integrity()
        assert scheduler.reset_prefix_cache(), "blocks are held after the last answer"
        counted = {key: value - before[key] for key, value in asdict(scheduler.counters).items()}
        p95_s = quantiles(play.ttfts_s, n=20)[-1]
        seconds = (watch.seconds, watch.cpu_seconds)
        return Outcome(*seconds, play.steps, mean(play.ttfts_s), p95_s, counted)

    @contextmanager
    def _held_back(self, num_blocks: int) -> Iterator[None]:
        pool: Any = self.local.scheduler.kv_cache_manager.block_pool
        blocks = pool.get_new_blocks(num_blocks)
        try:
            yield
        finally:
            pool.free_blocks(blocks)

    def close(self) -> None:
        self.local.close()


def in_a_process(function: Callable[..., T], *arguments: Any, one_thread: bool = True) -> T:
    """What the function returns in a new process: one process an engine, as vLLM wants it.

    `one_thread`: several wait for each other after every operation, and are 20
    times slower than one when the cores have other work too.
    """
    if one_thread:
        os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_silence) as pool:
        return pool.submit(function, *arguments).result()


def _silence() -> None:
    """Engines write hundreds of lines; what goes wrong comes back as an exception."""
    with open(os.devnull, "wb") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)


class _Play:
    """One run under way."""

    def __init__(self, engine: LocalEngine, sessions: Sequence[PlannedSession]) -> None:
        self._engine = engine
        self._coming = deque(coming(sessions))
        self._num_sessions = len(sessions)
        self._sealed_s: dict[str, float] = {}
        self.steps = 0
        self.ttfts_s: list[float] = []

    def run(self) -> None:
        """Until the last answer."""
        while len(self.ttfts_s) < self._num_sessions:
            while self._coming and self._coming[0].step <= self.steps:
                self._send(*self._coming.popleft())
            for output in self._engine.step():
                if output.new_token_ids:
                    took_s = time.perf_counter() - self._sealed_s[output.request_id]
                    self.ttfts_s.append(took_s)
            self.steps += 1

    def _send(self, name: str, revision: int, change: TimedSplice) -> None:
        event = ContextEvent(revision, change.keep_tokens, change.seals, begins=revision == 1)
        self._engine.add(name, change.token_ids, event)
        if change.seals:
            self._sealed_s[name] = time.perf_counter()
