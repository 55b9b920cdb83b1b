"""Faults that users of streaming input in other engines met; ours must survive each.

S1 several resumed sessions hold blocks and none can go on (vllm#49439)
S2 a session is in two queues at once (vllm#52693)
S3 a session grows beyond max_model_len, or beyond the whole KV memory (vllm#39996)
S4 merged outputs, and an abort that reads as "chunk done" (vllm#53861)
S5 a session grows into a shape that was not compiled: 54 s a step (vllm#52471)
S6 idle sessions are pinned, over-subscription deadlocks (vllm#28973)
S7 an abort corrupts or leaks the session's place (sglang#22273)
S8 time to first token is counted once a chunk: one engine cannot show it, see
   `test_a_session_is_counted` in tests/integration/cluster/test_metrics.py; that a
   session is sampled once is checked by every test here.

All run the real scheduler class with a fake executor that notices wrong KV.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.refusals import refused

pytest.importorskip("vllm")

from vllm.config import CompilationMode

from prefill_worker.engine import PrefillSession, prefill_outputs
from prefill_worker.policy import POLICIES
from prefill_worker.session_state import ContextEvent
from stream2llm.api.errors import UnavailableError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.engine.output_stream import OutputStream
from stream2llm.engine.vllm_sampling import token_step
from stream2llm.serving.settings.worker_options import DEFAULT_POLICY
from tests.digests import answer_of
from tests.example_policy import install_module
from tests.scheduling.driver import SchedulerDriver
from tests.scheduling.engine_settings import (
    EngineSettings,
    create_config,
    create_scheduler,
    worker_options,
)
from tests.scheduling.session_engine import SessionEngine

STARVATION_GUARD_STEPS = 6
# The defaults: 24 blocks of 4 tokens, 24 tokens and 3 requests a step.
NUM_BLOCKS = EngineSettings.num_blocks - 1


def settings_of(policy: str = "fcfs", **settings: Any) -> EngineSettings:
    options = worker_options(policy=policy, starvation_guard_steps=STARVATION_GUARD_STEPS)
    return EngineSettings(options=options, **settings)


def make_driver(policy: str = "fcfs", **settings: Any) -> SchedulerDriver:
    return SchedulerDriver(settings_of(policy, **settings))


@pytest.fixture
def driver() -> Iterator[SchedulerDriver]:
    driver = make_driver()
    yield driver
    driver.close()


def tokens(session: int, num_tokens: int) -> list[int]:
    """No other session's tokens."""
    return [1000 * (session + 1) + position for position in range(num_tokens)]


def steps_to_end(driver: SchedulerDriver, lengths: Sequence[int]) -> int:
    """By the starvation guard's bound, were all of them guarded one after the other."""
    token_budget = driver.settings.token_budget
    return 2 + STARVATION_GUARD_STEPS + sum(1 + length // token_budget for length in lengths)


def assert_all_end(driver: SchedulerDriver, names: Sequence[str]) -> None:
    """Exactly, in time, and nothing is left of them."""
    lengths = [len(driver.sessions[name].tokens) for name in names]
    driver.run_until_answered(names, steps_to_end(driver, lengths))
    for name in names:
        assert driver.is_exact(name)
        if name in driver.leased():
            driver.end_lease(name, expired=False)
    driver.step()  # the worker says that it was read, then hears that the request is gone
    driver.step()
    driver.check()


# -- S1 ---------------------------------------------------------------------------


@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("policy", POLICIES)
def test_s1_sessions_that_hold_blocks_and_do_not_fit_all_end(
    policy: str, prefix_caching: bool
) -> None:
    driver = make_driver(policy, prefix_caching=prefix_caching)
    names = [f"s{number}" for number in range(5)]
    for number, name in enumerate(names):
        driver.open(name, tokens(number, 16), hand_over=True)
    driver.run()
    assert all(driver.table(name) for name in names)
    for number, name in enumerate(names):
        driver.append(name, [tuple(tokens(10 + number, 60))])
    driver.take_blocks(NUM_BLOCKS)  # nothing is free any more, but what they hold
    driver.step()
    driver.return_blocks()
    for name in names:
        driver.seal(name, [5])
    assert_all_end(driver, names)
    assert driver.scheduler.counters.recompute_preemptions > 0
    driver.check_empty()


@pytest.mark.parametrize("policy", POLICIES)
def test_s1_what_waits_for_a_hand_over_says_so_and_goes_on_after_it(policy: str) -> None:
    driver = make_driver(policy)
    driver.take_blocks(NUM_BLOCKS - 2)
    for number in range(2):
        driver.open(f"s{number}", tokens(number, 30), hand_over=False)
        driver.seal(f"s{number}", [5])
    for _ in range(3 * STARVATION_GUARD_STEPS):
        driver.step()
        driver.check()
    assert not driver.answers()
    assert driver.has_work()
    delays = {progress["delay"] for s in driver.sessions.values() for progress in s.progress}
    assert "kv_leased" in delays
    driver.return_blocks()
    assert_all_end(driver, ["s0", "s1"])
    driver.check_empty()


def test_s1_a_hand_over_that_shares_its_blocks_with_an_idle_session_ends() -> None:
    """No block becomes free by it, but evicting that session does free some from then on."""
    driver = make_driver()
    shared = tokens(0, 60)
    driver.open("handed-over", shared, hand_over=True)
    driver.seal("handed-over")
    driver.run_until_answered(["handed-over"])
    driver.open("idle", [*shared, 7], hand_over=False)
    driver.run()
    driver.open("waits", tokens(1, 60), hand_over=False)
    driver.seal("waits")
    for _ in range(5):
        driver.step()
        driver.check()
    assert driver.num_free_blocks == 0
    assert "waits" not in driver.answers()
    driver.end_lease("handed-over", expired=False)
    assert_all_end(driver, ["waits"])
    driver.seal("idle", [5])
    assert_all_end(driver, ["idle"])
    driver.check_empty()


# -- S2 ---------------------------------------------------------------------------


def never_computed(driver: SchedulerDriver) -> None:
    """The session under test has not been in a step."""


def running(driver: SchedulerDriver) -> None:
    driver.step()
    assert "s" in driver.last_step.num_scheduled_tokens
    assert driver.has_work()


def idle(driver: SchedulerDriver) -> None:
    driver.run()


def evicted(driver: SchedulerDriver) -> None:
    driver.run()
    driver.open("rival", tokens(7, NUM_BLOCKS * 4), hand_over=False)
    driver.seal("rival")
    driver.run_until_answered(["rival"])
    assert not driver.table("s") or driver.scheduler.counters.recompute_preemptions


def waits_for_memory(driver: SchedulerDriver) -> None:
    driver.step()
    driver.take_blocks(NUM_BLOCKS)
    driver.step()


MOMENTS = [never_computed, running, idle, evicted, waits_for_memory]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
@pytest.mark.parametrize("kind", ["append", "update", "shrink", "seal"])
def test_s2_an_event_at_any_moment_leaves_a_session_in_one_place(moment: Any, kind: str) -> None:
    driver = make_driver()
    driver.open("s", tokens(0, 10), hand_over=True)
    driver.append("s", [tuple(tokens(1, 50))])
    moment(driver)
    if kind == "append":
        driver.append("s", [tuple(tokens(2, 10))])
    elif kind == "update":
        driver.update("s", [tuple(tokens(1, 20) + tokens(3, 25))])
    elif kind == "shrink":
        driver.update("s", [])
    else:
        driver.seal("s", [5])
    driver.check()  # in no queue between steps
    driver.return_blocks()
    driver.step()  # the driver checks: announced once, as new
    announced = [new.req_id for new in driver.last_step.scheduled_new_reqs]
    if "s" in driver.last_step.num_scheduled_tokens:
        assert announced.count("s") == 1
    if kind != "seal":
        driver.seal("s", [5])
    assert_all_end(driver, ["s"])
    driver.check_empty()


# -- S3 ---------------------------------------------------------------------------

SAMPLING = SamplingParameters(max_tokens=4, temperature=0.0)


async def grow(session: PrefillSession, engine: SessionEngine, chunks: int, size: int) -> None:
    for number in range(chunks):
        keep = number * size
        await session.splice(number + 1, keep, list(range(keep, keep + size)))
        engine.run()


@pytest.mark.parametrize(
    ("settings", "longest", "reason"),
    [
        (settings_of(max_model_len=64), 63, r"at most 64 \(max_model_len\)"),
        (settings_of(num_blocks=13), 48, "KV memory has 12 in all"),
    ],
    ids=["max_model_len", "kv-memory"],
)
async def test_s3_a_session_cannot_outgrow_the_engine(
    settings: EngineSettings, longest: int, reason: str
) -> None:
    engine = SessionEngine(settings)
    session = PrefillSession(engine, "s", SAMPLING)  # type: ignore[arg-type]
    await grow(session, engine, chunks=longest // 8, size=8)
    told = longest // 8 * 8
    with refused(reason, reason="CONTEXT_TOO_LONG"):
        await session.splice(90, told, list(range(told, longest + 1)))
    # Nothing has changed: the session takes what does fit, and is answered.
    await session.splice(91, told, list(range(told, longest)), seal=True)
    engine.run()
    outputs = [output async for output in prefill_outputs(session.outputs)]
    assert list(outputs[-1].sampled.token_ids) == [answer_of(range(longest))]


# -- S4 ---------------------------------------------------------------------------


async def test_s4_a_reader_that_lags_gets_every_output_by_itself() -> None:
    engine = SessionEngine(settings_of())
    session = PrefillSession(engine, "s", SAMPLING)  # type: ignore[arg-type]
    await grow(session, engine, chunks=5, size=8)
    await session.splice(6, 40, [7], seal=True, hand_over=True)
    engine.run()
    outputs = [output async for output in prefill_outputs(session.outputs)]
    told = [output.progress["revision"] for output in outputs]
    assert sorted(set(told)) == [1, 2, 3, 4, 5, 6]
    assert told == sorted(told)
    ends = [output for output in outputs if output.sampled is not None]
    assert ends == outputs[-1:]


async def ended_by(engine: SessionEngine, session: PrefillSession) -> OutputStream:
    """The session's stream after the engine, not the client, has ended it."""
    engine.processor.abort_requests(["s"], internal=True)
    return session.outputs


async def test_s4_an_abort_is_an_error_and_never_a_silent_end() -> None:
    engine = SessionEngine(settings_of())
    session = PrefillSession(engine, "s", SAMPLING)  # type: ignore[arg-type]
    await grow(session, engine, chunks=2, size=8)
    stream = await ended_by(engine, session)
    outputs = [output async for output in prefill_outputs(stream)]
    end = outputs[-1].sampled
    assert end is not None, "the stream ended without a reason"
    # What the service does with the end of a stream.
    with refused(reason="WORKER_LOST", error=UnavailableError):
        token_step(end, None)


async def test_s4_an_error_of_the_engine_reaches_every_reader() -> None:
    engine = SessionEngine(settings_of())
    session = PrefillSession(engine, "s", SAMPLING)  # type: ignore[arg-type]
    await grow(session, engine, chunks=2, size=8)
    engine.processor.propagate_error(RuntimeError("the step failed"))
    with pytest.raises(RuntimeError, match="the step failed"):
        [output async for output in prefill_outputs(session.outputs)]


# -- S5 ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine_args", "message"),
    [
        ({"enable_chunked_prefill": False, "max_model_len": 24}, "enable_chunked_prefill=True"),
        ({"scheduler_reserve_full_isl": True}, "scheduler_reserve_full_isl=False"),
        ({"watermark": 0.1}, "watermark=0"),
        ({"long_prefill_token_threshold": 8}, "long_prefill_token_threshold=0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_s5_settings_that_break_streaming_are_refused_at_the_start(
    engine_args: dict[str, Any], message: str
) -> None:
    settings = EngineSettings(leases=False, engine_args=engine_args)
    config = create_config(settings)
    config.cache_config.num_gpu_blocks = settings.num_blocks
    with pytest.raises(ValueError, match=message):
        create_scheduler(settings, config)


def test_s5_steps_that_overlap_are_refused_at_the_start() -> None:
    settings = EngineSettings(leases=False)
    config = create_config(settings)
    config.cache_config.num_gpu_blocks = settings.num_blocks
    config.scheduler_config.async_scheduling = True  # a CPU engine would not let us ask for it
    with pytest.raises(ValueError, match="async_scheduling=False"):
        create_scheduler(settings, config)


@pytest.mark.parametrize(("endpoints", "is_enough"), [([8], False), ([], False), ([8, 24], True)])
def test_s5_what_is_compiled_covers_every_step(endpoints: list[int], is_enough: bool) -> None:
    settings = EngineSettings(leases=False)
    config = create_config(settings)
    config.cache_config.num_gpu_blocks = settings.num_blocks
    config.compilation_config = copy.copy(config.compilation_config)
    config.compilation_config.mode = CompilationMode.VLLM_COMPILE
    config.compilation_config.compile_ranges_endpoints = endpoints
    if is_enough:
        create_scheduler(settings, config)
        return
    with pytest.raises(ValueError, match="compile_ranges_endpoints"):
        create_scheduler(settings, config)


def test_s5_no_step_outgrows_the_first_ones(driver: SchedulerDriver) -> None:
    for number in range(4):
        driver.open(f"s{number}", tokens(number, 3), hand_over=False)
    for size in (1, 20, 40):  # the driver checks the size of every step
        for number in range(4):
            driver.append(f"s{number}", [tuple(tokens(20 + number, size))])
        driver.step()
    for number in range(4):
        driver.seal(f"s{number}")
    assert_all_end(driver, ["s0", "s1", "s2", "s3"])


# -- S6 ---------------------------------------------------------------------------


def fill_with_idle_sessions(driver: SchedulerDriver) -> list[str]:
    """As many as fit, all computed."""
    names = [f"idle{number}" for number in range(4)]
    for number, name in enumerate(names):
        driver.open(name, tokens(number, NUM_BLOCKS), hand_over=False)
    driver.run()
    assert driver.num_free_blocks == 0
    return names


@pytest.mark.parametrize("policy", POLICIES)
def test_s6_idle_sessions_make_room_for_a_new_one(policy: str) -> None:
    driver = make_driver(policy)
    idle_names = fill_with_idle_sessions(driver)
    driver.open("new", tokens(9, 80), hand_over=False)
    driver.seal("new", [5])
    assert_all_end(driver, ["new"])
    assert driver.scheduler.counters.recompute_preemptions >= 3
    for name in idle_names:
        driver.seal(name, [5])
    assert_all_end(driver, idle_names)
    driver.check_empty()


@pytest.mark.parametrize("policy", POLICIES)
def test_s6_a_new_open_session_is_computed_too(policy: str) -> None:
    driver = make_driver(policy)
    fill_with_idle_sessions(driver)
    driver.open("new", tokens(9, 20), hand_over=False)
    bound = steps_to_end(driver, [20])
    for _ in range(bound):
        driver.step()
        driver.check()
        if driver.sessions["new"].progress[-1:] and (
            driver.sessions["new"].progress[-1]["prefilled_tokens"] == 19
        ):
            return
    raise AssertionError(f"not computed within {bound} steps")


@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("policy", POLICIES)
def test_s6_idle_sessions_that_do_not_fit_together_come_to_rest(
    policy: str, prefix_caching: bool
) -> None:
    driver = make_driver(policy, prefix_caching=prefix_caching)
    for number in range(3):
        driver.open(f"s{number}", tokens(number, 60), hand_over=False)
    driver.run(max_steps=40)


# -- a policy that raises ---------------------------------------------------------


def test_a_policy_that_raises_is_logged_once_and_replaced_and_no_session_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows no session behind the eighth, and is asked again afterwards."""
    code = "def first(view): return (list(range(8))[view.arrival - 1],)"
    path = install_module(tmp_path, monkeypatch, "raises_later", code) + ":first"
    driver = make_driver(path)
    names = [f"s{number}" for number in range(10)]
    for number, name in enumerate(names):
        driver.open(name, tokens(number, 20), hand_over=False)
        driver.seal(name, [5])
    assert_all_end(driver, names)
    failures = [each for each in caplog.records if "policy_failed" in each.message]
    assert [each.exc_info is not None for each in failures] == [True]
    driver.command(1)
    driver.step()
    followed = driver.reports[-1].policy, driver.reports[-1].policy_failure
    assert followed == (DEFAULT_POLICY, f"{path} raised IndexError: list index out of range")
    driver.command(2, set_policy="lcas")
    driver.step()
    assert (driver.reports[-1].policy, driver.reports[-1].policy_failure) == ("lcas", "")
    driver.check_empty()


# -- S7 ---------------------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
@pytest.mark.parametrize("sealed", [False, True], ids=["open", "sealed"])
@pytest.mark.parametrize("in_step", [False, True], ids=["between", "in-the-middle"])
def test_s7_an_abort_at_any_moment_leaves_nothing(moment: Any, sealed: bool, in_step: bool) -> None:
    driver = make_driver()
    driver.open("s", tokens(0, 60), hand_over=True)
    moment(driver)
    driver.open("other", tokens(0, 30), hand_over=True)
    if sealed:
        driver.seal("s", [5])
    if in_step:
        driver.step(cancel="s")
    else:
        driver.cancel("s")
    assert "s" not in driver.scheduler.requests
    driver.check()
    driver.return_blocks()
    driver.seal("other", [6])
    assert_all_end(driver, ["other"])
    assert "s" not in driver.answers()
    driver.check_empty()


def test_s7_an_abort_in_the_step_that_samples(driver: SchedulerDriver) -> None:
    driver.open("s", tokens(0, 20), hand_over=True)
    driver.seal("s", [5])
    driver.step(cancel="s")
    assert driver.last_step.num_scheduled_tokens == {"s": 21}
    assert not driver.answers()
    driver.step()
    driver.check_empty()


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_s7_an_abort_under_a_lease_frees_the_blocks(num_steps: int) -> None:
    driver = make_driver()
    driver.open("s", tokens(0, 20), hand_over=True)
    driver.seal("s", [6])
    driver.run_until_answered(["s"])
    for _ in range(num_steps):  # the worker hears of the lease with the first of them
        driver.step()
    assert driver.leased() == {"s"}
    assert driver.num_free_blocks == NUM_BLOCKS - 6
    driver.cancel("s")
    driver.cancel("s")
    driver.step()
    driver.step()
    driver.check_empty()


def test_s7_an_event_that_was_on_its_way_revives_nobody(driver: SchedulerDriver) -> None:
    driver.open("s", tokens(0, 20), hand_over=True)
    driver.step()
    session = driver.sessions["s"]
    driver.cancel("s")
    driver.sessions["s"] = session
    driver.send("s", [4, 5], ContextEvent(2, 20, seal=True))
    del driver.sessions["s"]
    driver.step()
    driver.step()
    driver.check_empty()
