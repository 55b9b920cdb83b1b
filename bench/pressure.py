"""What memory pressure costs: victims that lose their tail against victims that lose everything.

A crawl in the shape of the paper's (documents of log-normal length, appended one
by one, many questions at a time) on a real engine with a small random Llama, on
KV memory for a few of the sessions. Events come at given engine steps, not at
given times, so every variant sees the same ones, and a busy machine changes
nothing but the seconds. Each variant runs in a process of its own.

    python -m bench.pressure
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from bench.stopwatch import Stopwatch
from prefill_worker.local_engine import LocalEngine
from prefill_worker.session_state import ContextEvent
from stream2llm.model_store import ensure_random_llama

NUM_SESSIONS = 40
# 40 sessions want about 1,200 blocks in all, and up to 25 are open at once.
NUM_BLOCKS = 200
SEEDS = (1, 2, 3)
MAX_MODEL_LEN = 4096
VARIANTS: dict[str, dict[str, Any]] = {
    "tail": {},
    "whole": {"evicts_whole_requests": True},
    "naive": {"evicts_whole_requests": True, "policy": "default"},
}


@dataclass(frozen=True, slots=True)
class Event:
    """Something a session sends at an engine step."""

    name: str
    revision: int
    keep_tokens: int
    tokens: list[int]
    seal: bool


def workload(seed: int) -> dict[int, list[Event]]:
    """Events by step: an opening with the first document, appends, a seal with the question."""
    rng = random.Random(seed)
    events: dict[int, list[Event]] = defaultdict(list)
    begin = 0
    for number in range(NUM_SESSIONS):
        begin += round(rng.expovariate(1 / 5))
        step, known = begin, 0
        num_chunks = rng.randint(3, 8)
        for chunk in range(num_chunks + 1):
            seal = chunk == num_chunks
            length = 12 if seal else min(round(rng.lognormvariate(5.0, 0.8)), 480)
            tokens = [rng.randrange(100, 30_000) for _ in range(length)]
            events[step].append(Event(f"s{number}", chunk + 1, known, tokens, seal))
            known += length
            step += 1 + round(rng.expovariate(1 / 12))
    return events


def run(variant: str, prefix_caching: bool, seed: int) -> dict[str, Any]:
    """Plays the workload; what it cost."""
    engine = LocalEngine(
        ensure_random_llama("fast"),
        block_size=32,
        num_gpu_blocks_override=NUM_BLOCKS,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=512,
        max_num_seqs=32,
        enable_prefix_caching=prefix_caching,
        options=VARIANTS[variant],
    )
    events = workload(seed)
    num_tokens = sum(len(event.tokens) for batch in events.values() for event in batch)
    num_answers, step = 0, 0
    with Stopwatch() as watch:
        while num_answers < NUM_SESSIONS:
            for event in events.pop(step, ()):
                begins = event.revision == 1
                said = ContextEvent(event.revision, event.keep_tokens, event.seal, begins)
                engine.add(event.name, event.tokens, said)
            num_answers += sum(bool(output.new_token_ids) for output in engine.step())
            step += 1
    engine.scheduler.check_integrity()
    counters = engine.scheduler.counters
    engine.close()
    return {
        "variant": variant,
        "caching": prefix_caching,
        "tokens": num_tokens,
        "computed": counters.computed_tokens,
        "recomputed": counters.recomputed_tokens,
        "preemptions": counters.recompute_preemptions,
        "steps": step,
        "seconds": watch.seconds,
    }


def main() -> None:
    """Runs one variant, or all of them in a process each, and prints a table."""
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1], sys.argv[2] == "cache", int(sys.argv[3]))))
        return
    print("variant     cache  seed  tokens  computed  recomputed  preemptions  steps  seconds")
    for caching in ("no-cache", "cache"):
        for seed in SEEDS:
            for variant in VARIANTS:
                _print_row(variant, caching, seed)


def _print_row(variant: str, caching: str, seed: int) -> None:
    command = [sys.executable, "-m", "bench.pressure", variant, caching, str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{variant:8}  {caching:>8}  {seed:>4}  {figures['tokens']:>6}  {figures['computed']:>8}"
        f"  {figures['recomputed']:>10}  {figures['preemptions']:>11}"
        f"  {figures['steps']:>5}  {figures['seconds']:>7.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
