"""What our scheduler costs in a real engine.

`idle`: the whole `schedule()` call with 8 active sessions beside 1,000 idle
open ones, against the 8 alone, on a small random Llama. The idle ones come and
go in turns, so that a machine that gets busier slows both.

`share`: what our scheduler adds to an engine step (planning, views, evictions,
progress), as a share of the step, on the default model: our schedule() and
update_from_output() without what they spend in vLLM's own.

Real kernels on this machine's CPU, where a step takes long; on a GPU the same
microseconds meet shorter steps, so the microseconds are printed too.
"""

from __future__ import annotations

import random
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest import mock

from vllm.v1.core.sched.scheduler import Scheduler

from experiments.pressure import in_a_process
from experiments.stopwatch import Stopwatch
from prefill_worker.local_engine import LocalEngine
from prefill_worker.session_state import ContextEvent
from stream2llm.models.store import ensure_random_llama, fetch_default_model

NUM_ACTIVE = 8
NUM_IDLE = 1000
CHUNK_TOKENS = 256
MAX_MODEL_LEN = 4096


class Streams:
    """Active sessions: each gets a chunk whenever it has caught up, and starts over when long."""

    def __init__(self, engine: LocalEngine, vocab_size: int) -> None:
        self._engine = engine
        self._rng = random.Random(3)
        self._vocab_size = vocab_size
        self._num_tokens = [0] * NUM_ACTIVE
        self._revision = [0] * NUM_ACTIVE

    def feed(self) -> None:
        """Chunks for those that have nothing to compute."""
        for number in range(NUM_ACTIVE):
            name = f"active-{number}"
            if self._revision[number] and self._engine.scheduler.has_work(name):
                continue
            keep = self._num_tokens[number]
            if keep + CHUNK_TOKENS >= MAX_MODEL_LEN:
                keep = 0
            begins = self._revision[number] == 0
            self._revision[number] += 1
            event = ContextEvent(self._revision[number], keep, seal=False, begins=begins)
            self._engine.add(name, self.tokens(CHUNK_TOKENS), event)
            self._num_tokens[number] = keep + CHUNK_TOKENS

    def tokens(self, count: int) -> list[int]:
        """Random tokens, so that nothing is found in the prefix cache."""
        return [self._rng.randrange(100, self._vocab_size) for _ in range(count)]


@contextmanager
def timed(owner: type, name: str) -> Iterator[list[float]]:
    """Collects the seconds of each call of a method."""
    seconds: list[float] = []
    original: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        with Stopwatch() as watch:
            result = original(*args, **kwargs)
        seconds.append(watch.seconds)
        return result

    with mock.patch.object(owner, name, call):
        yield seconds


def measure_idle() -> str:
    """The ratio of `schedule()` with and without idle sessions."""
    engine = _engine(ensure_random_llama("fast"))
    streams = Streams(engine, vocab_size=30_000)
    _run(engine, streams, 50)
    alone, beside = [], []
    for _ in range(3):
        alone += _run(engine, streams, 100)
        for number in range(NUM_IDLE):
            event = ContextEvent(1, 0, seal=False, begins=True)
            engine.add(f"idle-{number}", streams.tokens(33), event)
        # Until the idle ones are idle.
        _run(engine, streams, 200)
        beside += _run(engine, streams, 100)
        for number in range(NUM_IDLE):
            engine.cancel(f"idle-{number}")
        _run(engine, streams, 20)
    engine.close()
    ratio = median(beside) / median(alone)
    return (
        f"schedule(), {NUM_ACTIVE} active: {median(alone) * 1e6:.0f} us alone,"
        f" {median(beside) * 1e6:.0f} us beside {NUM_IDLE} idle, ratio {ratio:.2f}"
    )


def measure_share() -> str:
    """What our scheduler adds to a step of the default model."""
    engine = _engine(fetch_default_model(), dtype="bfloat16")
    streams = Streams(engine, vocab_size=49_000)
    _run(engine, streams, 5)
    ours, theirs, steps = [], [], []
    with (
        timed(Scheduler, "schedule") as base_schedule,
        timed(Scheduler, "update_from_output") as base_update,
        timed(type(engine.scheduler), "schedule") as schedule,
        timed(type(engine.scheduler), "update_from_output") as update,
    ):
        for _ in range(60):
            streams.feed()
            with Stopwatch() as step:
                engine.step()
            steps.append(step.seconds)
            theirs.append(base_schedule[-1] + base_update[-1])
            ours.append(schedule[-1] + update[-1] - theirs[-1])
    engine.close()
    return (
        f"a step: {median(steps) * 1e3:.1f} ms; in vLLM's scheduler {median(theirs) * 1e6:.0f} us;"
        f" added by ours {median(ours) * 1e6:.0f} us, {sum(ours) / sum(steps):.2%} of the step"
    )


def _engine(model: Any, **engine_args: Any) -> LocalEngine:
    return LocalEngine(
        model,
        block_size=32,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=512,
        max_num_seqs=32,
        **engine_args,
    )


def _run(engine: LocalEngine, streams: Streams, num_steps: int) -> list[float]:
    """Seconds of `schedule()` in each of so many steps."""
    with timed(type(engine.scheduler), "schedule") as seconds:
        for _ in range(num_steps):
            streams.feed()
            engine.step()
    return seconds


PARTS = {"idle": measure_idle, "share": measure_share}


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))


def main(args: Namespace) -> Sequence[str]:
    """Each part in a process of its own: vLLM allows one engine a process."""
    for part in args.only:
        print(in_a_process(PARTS[part], one_thread=False), flush=True)
    return ()
