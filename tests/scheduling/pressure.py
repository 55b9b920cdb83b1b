"""Thirty sessions on KV memory for eight: an engine of that size, and what is played on it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from vllm.config import KVTransferConfig

from prefill_worker.kv_transfer import SWAP_ONLY
from prefill_worker.local_engine import LocalEngine
from stream2llm.models.store import ensure_random_llama
from tests.builders import LinearCosts
from tests.reference_engine import ReferenceEngine
from tests.scheduling.engine_driver import SPREAD, EngineDriver
from tests.scheduling.engine_settings import worker_options
from tests.session_machine import Tokens

NUM_SESSIONS = 30
# Sessions of twelve blocks of 32 on average, room for eight of them.
MEAN_BLOCKS = 12
NUM_BLOCKS = 8 * MEAN_BLOCKS
# Up to four blocks are computed again, more are copied.
COSTS = LinearCosts(token_s=1.0, block_s=10.0, copy_s=25.0)
_TOKENS_PER_BLOCK = 32 // SPREAD
MAX_MODEL_LEN = NUM_BLOCKS * 32


def tight_engine(**engine_args: Any) -> LocalEngine:
    """KV for eight sessions, and room on the host for as much and a half."""
    return LocalEngine(
        ensure_random_llama("sensitive"),
        dtype="float32",
        block_size=32,
        num_gpu_blocks_override=NUM_BLOCKS + 1,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=256,
        max_num_seqs=8,
        kv_transfer_config=KVTransferConfig(**SWAP_ONLY),
        options=worker_options(starvation_guard_steps=50, offload_pool_blocks=150),
        **engine_args,
    )


class Event(NamedTuple):
    """A session's new document list; the last one seals, or is its cancellation."""

    step: int
    name: str
    documents: tuple[Tokens, ...]
    ends: str = ""


def workload() -> list[Event]:
    """The same for all: who sends what at which step."""
    rng = random.Random(3)
    events = []
    for number in range(NUM_SESSIONS):
        name, documents, step = f"s{number}", list[Tokens](), rng.randrange(10)
        for _ in range(rng.randint(2, 4)):
            document = _document(rng, number)
            is_update = number % 2 == 1 and len(documents) > 1
            documents = [*documents[:-1], document] if is_update else [*documents, document]
            events.append(Event(step, name, tuple(documents)))
            step += rng.randint(6, 25)
        ends = "cancel" if number % 8 == 5 else "seal"
        events.append(Event(step, name, tuple(documents), ends))
    return sorted(events, key=lambda event: event.step)


def _document(rng: random.Random, number: int) -> Tokens:
    """Four blocks on average; every third session's first ones begin like others'."""
    length = rng.randint(2, 6) * _TOKENS_PER_BLOCK + rng.randint(0, 1)
    shared = tuple(range(length // 2)) if number % 3 == 0 else ()
    return shared + tuple(rng.randrange(3000) for _ in range(length - len(shared)))


EVENTS = workload()


class Play:
    """One run of the workload."""

    def __init__(
        self, engine: LocalEngine, reference: ReferenceEngine, num_answer_tokens: int = 1
    ) -> None:
        self.driver = EngineDriver(engine, reference, num_answer_tokens)
        self.documents: dict[str, list[Tokens]] = {}
        self.cancelled: set[str] = set()

    def run(self, before_step: Callable[[int], None] = lambda step: None) -> None:
        step, events = 0, list(EVENTS)
        while events or self.driver.has_work():
            before_step(step)
            while events and events[0].step <= step:
                self._send(events.pop(0))
            self.driver.step()
            self.driver.check()
            step += 1
            assert step < 5000

    def _send(self, event: Event) -> None:
        if event.name not in self.documents:
            self.driver.open(event.name, (1,), hand_over=False)
        self.documents[event.name] = list(event.documents)
        if event.ends == "cancel":
            self.driver.cancel(event.name)
            self.cancelled.add(event.name)
        elif event.ends == "seal":
            self.driver.seal(event.name, (9,))
        else:
            self.driver.update(event.name, event.documents)

    def check_answers(self) -> None:
        for name, documents in self.documents.items():
            if name not in self.cancelled:
                expected = self.driver.whole_answer((1, *sum(documents, ()), 9))
                assert self.driver.answers()[name] == expected, name
        assert self.driver.answers().keys() == self.documents.keys() - self.cancelled
