"""Sessions that are answered where they were prefilled, in the real scheduler with a fake executor.

M1 an answer goes on behind its first token, one token a step, and its end frees the session
M2 answers get their token in every step, whatever there is to prefill; prefill goes on beside them
M3 an answer is the same when its KV was evicted, swapped or recomputed meanwhile
M4 a cancelled answer leaves nothing
M5 with an inter-token target, prefill beside answers is cut, and goes on
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("vllm")

from prefill_worker.engine import PrefillSession, prefill_outputs
from prefill_worker.policy import POLICIES
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.engine.vllm_sampling import token_step
from tests.digests import STOP_TOKEN, whole_answer_of
from tests.scheduling.engine_settings import EngineSettings, worker_options
from tests.scheduling.session_engine import SessionEngine

pytestmark = pytest.mark.integration

SAMPLING = SamplingParameters(temperature=0.0, ignore_eos=True)


def an_engine(
    policy: str = "fcfs", *, target_ms: int | None = None, **changes: Any
) -> SessionEngine:
    """24 blocks of 4 tokens, 24 tokens a step, no hand-over; slots for all sessions."""
    prefill = {"policy": policy, **changes.pop("prefill", {})}
    options = worker_options(starvation_guard_steps=6, **prefill)
    options = options.model_copy(update={"inter_token_target_ms": target_ms})
    defaults: dict[str, Any] = {"leases": False, "step_requests": 8}
    return SessionEngine(EngineSettings(options=options, **defaults | changes))


def a_session(engine: SessionEngine, name: str, **sampling: Any) -> PrefillSession:
    return PrefillSession(engine, name, replace(SAMPLING, **sampling))  # type: ignore[arg-type]


async def answered(engine: SessionEngine, name: str, tokens: list[int], num: int) -> PrefillSession:
    """A session that is sealed at once, to be answered with `num` tokens."""
    session = a_session(engine, name)
    await session.splice(1, 0, tokens, seal=True, answer_max_tokens=num)
    return session


async def tokens_of(session: PrefillSession) -> list[int]:
    """The whole answer of a session that has ended."""
    assert session.outputs is not None
    sampled = [o.sampled async for o in prefill_outputs(session.outputs) if o.sampled is not None]
    return [token_id for each in sampled for token_id in token_step(each, None).token_ids]


def check_empty(engine: SessionEngine) -> None:
    engine.scheduler.check_integrity()
    assert not engine.scheduler.has_unfinished_requests()
    assert not engine.scheduler.requests
    manager = engine.scheduler.kv_cache_manager
    assert manager.block_pool.get_num_free_blocks() == engine.settings.num_blocks - 1


@pytest.mark.parametrize("policy", POLICIES)
async def test_m1_an_answer_goes_on_here(policy: str) -> None:
    engine = an_engine(policy)
    session = a_session(engine, "s")
    await session.splice(1, 0, list(range(10)))
    engine.run()
    await session.splice(2, 7, [70, 71], seal=True, answer_max_tokens=20)
    num_steps = engine.executor.num_steps
    engine.run()
    assert await tokens_of(session) == whole_answer_of([*range(7), 70, 71], 20)
    assert engine.executor.num_steps - num_steps == 20, "one token a step"
    check_empty(engine)


async def test_m1_a_stop_token_ends_it() -> None:
    engine = an_engine()
    prompt = next([n] for n in range(900) if STOP_TOKEN in whole_answer_of([n], 20)[2:])
    expected = whole_answer_of(prompt, 20)
    session = a_session(engine, "s", stop_token_ids=(STOP_TOKEN,))
    await session.splice(1, 0, prompt, seal=True, answer_max_tokens=20)
    engine.run()
    assert await tokens_of(session) == expected[: expected.index(STOP_TOKEN) + 1]
    check_empty(engine)


async def test_m1_an_answer_that_was_begun_elsewhere_goes_on() -> None:
    """It has three of five tokens."""
    engine = an_engine()
    begun = whole_answer_of(range(10), 3)
    session = a_session(engine, "s")
    await session.splice(
        1, 0, [*range(10), *begun], seal=True, answer_tokens=3, answer_max_tokens=5
    )
    engine.run()
    assert begun + await tokens_of(session) == whole_answer_of(range(10), 5)


async def test_m1_an_answer_that_never_fits_is_refused() -> None:
    engine = an_engine()
    session = a_session(engine, "s")
    with pytest.raises(InvalidRequestError, match="KV memory for 97 tokens"):
        await session.splice(1, 0, [1] * 10, seal=True, answer_max_tokens=88)
    with pytest.raises(InvalidRequestError, match="as many tokens already"):
        await session.splice(1, 0, [1] * 10, seal=True, answer_tokens=3, answer_max_tokens=3)


@pytest.mark.parametrize("policy", POLICIES)
async def test_m2_answers_get_a_token_in_every_step(policy: str) -> None:
    engine = an_engine(policy)
    first = await answered(engine, "a", list(range(5)), 12)
    engine.step()
    other = a_session(engine, "b")
    await other.splice(1, 0, list(range(100, 160)))
    sealed = await answered(engine, "c", list(range(200, 210)), 1)
    for _ in range(5):
        before = engine.executor.requests["a"].tokens.copy()
        engine.step()
        assert len(engine.executor.requests["a"].tokens) == len(before) + 1
    assert len(await tokens_of(sealed)) == 1
    computed = engine.scheduler.requests["b"].num_computed_tokens
    assert computed == 59, "an open session is prefilled beside the answer"
    await other.cancel()
    engine.run()
    assert await tokens_of(first) == whole_answer_of(range(5), 12)
    check_empty(engine)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", ["recompute", "swap"])
async def test_m3_an_answer_survives_evictions(policy: str, mode: str) -> None:
    """Eight sessions of 20 tokens that answer with as many, on memory for 96."""
    prefill = {"preemption": mode}
    engine = an_engine(policy, prefill=prefill, offload_pool_blocks=12 if mode == "swap" else 0)
    sessions = {}
    for number in range(8):
        prompt = [100 * number + position for position in range(20)]
        sessions[number] = await answered(engine, f"s{number}", prompt, 20)
        engine.step()
        engine.scheduler.check_integrity()
    engine.run()
    for number, session in sessions.items():
        prompt = [100 * number + position for position in range(20)]
        assert await tokens_of(session) == whole_answer_of(prompt, 20), number
    counters = engine.scheduler.counters
    assert counters.recompute_preemptions + counters.swap_preemptions > 0
    check_empty(engine)


@pytest.mark.parametrize("is_evicted", [False, True])
async def test_m4_a_cancelled_answer_leaves_nothing(is_evicted: bool) -> None:
    engine = an_engine()
    first = await answered(engine, "a", list(range(40)), 50)
    second = await answered(engine, "b", list(range(100, 140)), 20)
    for _ in range(4 if not is_evicted else 18):
        engine.step()
    assert bool(engine.scheduler.counters.recompute_preemptions) == is_evicted
    await second.cancel()
    engine.step()
    await first.cancel()
    engine.run()
    check_empty(engine)


async def test_m5_prefill_beside_answers_is_cut_to_a_block() -> None:
    """The target is one that no step meets: prefill gets the least."""
    engine = an_engine(target_ms=0)
    first = await answered(engine, "a", list(range(5)), 8)
    engine.step()
    other = a_session(engine, "b")
    await other.splice(1, 0, list(range(100, 140)))
    for num_steps in range(1, 5):
        engine.step()
        request = engine.scheduler.requests["b"]
        assert request.num_computed_tokens == num_steps * engine.settings.block_size
    await first.cancel()
    engine.run()
    assert engine.scheduler.requests["b"].num_computed_tokens == 39
    await other.cancel()
