"""Whole clusters in virtual time: production routers and supervision, model workers, faults by seed.

`docs/simulation.md` says what is simulated, what has to hold and how a finding is replayed. What
it has found is here as scripts, too, that need no seed: each fault at many moments.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from router import arrangement
from router.answer import Answer
from router.quotas import TenantQuotas
from router.sealed_answer import SealedAnswer
from router.stop_strings import Matched, StopStringMatcher
from router.worker import Lease
from router.workers import WorkerPool
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client import Document
from stream2llm.client.inbox import Inbox
from stream2llm.cluster import adoption, supervision
from stream2llm.cluster import supervision as sv
from tests.simulation.faults import Fault, Kind
from tests.simulation.script import Script, roles_of
from tests.simulation.sessions import Change, Plan
from tests.simulation.simulate import Report, simulate, simulate_seeds
from tests.simulation.vocabulary import tiny_tokenizer

NUM_SEEDS, NUM_SLOW_SEEDS, PIECE = 500, 10_000, 100


def findings(first: int) -> list[str]:
    """The reports of a piece's seeds that have broken an invariant."""
    reports = simulate_seeds(range(first, first + PIECE))
    return [str(report) for report in reports if report.violations]


@pytest.mark.parametrize("first", range(0, NUM_SEEDS, PIECE))
def test_no_seed_breaks_an_invariant(first: int) -> None:
    found = findings(first)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_ten_thousand_seeds_break_no_invariant() -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn) as processes:
        pieces = processes.map(findings, range(NUM_SEEDS, NUM_SLOW_SEEDS, PIECE))
        found = [each for piece in pieces for each in piece]
    assert not found, "\n".join(found)


def test_a_seed_is_the_same_run_each_time() -> None:
    first, second = ([str(each) for each in simulate_seeds(range(5))] for _ in range(2))
    assert first == second


# -- what the invariants find ---------------------------------------------------------

Mutation = Callable[[pytest.MonkeyPatch], None]


def lease_is_kept(patch: pytest.MonkeyPatch) -> None:
    """A session that has ended still counts at its worker."""
    patch.setattr(Lease, "release", lambda _: None)


def handover_is_kept(patch: pytest.MonkeyPatch) -> None:
    """KV that nothing will read is left to the end of its lease."""
    patch.setattr(WorkerPool, "release_handover", lambda _self, _request: None)


def token_is_taken_twice(patch: pytest.MonkeyPatch) -> None:
    """A session goes on behind the last token but one."""
    whole = SealedAnswer.tokens.fget  # type: ignore[attr-defined]
    short = property(lambda self: whole(self)[: -1 if self.answer.num_tokens > 1 else None])
    patch.setattr(SealedAnswer, "tokens", short)


def received_is_not_told(patch: pytest.MonkeyPatch) -> None:
    """A client opens its session again without the answer's tokens that it has."""
    patch.setattr(Inbox, "resumed", property(lambda self: pb.ResumedSession()))


def text_comes_twice(patch: pytest.MonkeyPatch) -> None:
    """A router that takes an answer up shows its text from the beginning."""
    patch.setattr(Answer, "skip_chars", lambda _self, _num_chars: None)


def stop_strings_end_with_a_token(patch: pytest.MonkeyPatch) -> None:
    """A stop string that two tokens have together is not found."""
    push = StopStringMatcher.push

    def forgetful(self: StopStringMatcher, *args: Any, **options: Any) -> Matched:
        for pattern in self._patterns:
            pattern.num_matched = 0
        return push(self, *args, **options)

    patch.setattr(StopStringMatcher, "push", forgetful)


def layout_is_the_ranking(patch: pytest.MonkeyPatch) -> None:
    """The stable ordering lays documents out as they were given."""
    patch.setattr(arrangement, "arrange", lambda _current, wanted: list(range(len(wanted))))


def quota_is_kept(patch: pytest.MonkeyPatch) -> None:
    """The tokens of a session that has ended still count for its tenant."""
    hold = TenantQuotas.hold
    patch.setattr(TenantQuotas, "hold", lambda self, *args: hold(self, args[0], max(args[1], 0)))


def restart_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    """A worker's successor has the number of its predecessor."""
    begun = supervision.begun

    def uncounted(fleet: supervision.Fleet, action: supervision.Action) -> supervision.Fleet:
        after = begun(fleet, action)
        if not isinstance(action, supervision.Create) or not fleet[action.name].incarnation:
            return after
        return {**after, action.name: replace(after[action.name], incarnation=1)}

    patch.setattr(supervision, "begun", uncounted)


def living_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A controller that takes over believes that all has died meanwhile."""
    found = adoption._found
    patch.setattr(adoption, "_found", lambda old, _living, **options: found(old, None, **options))


RARELY_SEEN = (
    handover_is_kept,
    restart_is_not_counted,
    living_are_forgotten,
    received_is_not_told,
    text_comes_twice,
)
# Where the seeds begin that show it; 0 for all others.
FIRST_SEED = {handover_is_kept: 1000}


@pytest.mark.parametrize(
    "mutate",
    [
        *(lease_is_kept, token_is_taken_twice, quota_is_kept),
        *(stop_strings_end_with_a_token, layout_is_the_ranking),
        # Found after more seeds.
        *(pytest.param(each, marks=pytest.mark.slow) for each in RARELY_SEEN),
    ],
)
def test_a_mutation_is_found(mutate: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    first = FIRST_SEED.get(mutate, 0)
    assert any(report.violations for report in simulate_seeds(range(first, first + 200)))


MOMENTS = range(40, 400, 40)
DOCUMENT = tuple(range(10, 30))


def a_plan(**fields: Any) -> Plan:
    """A session of one document that streams its hand-over, and pauses before the seal."""
    defaults = {
        "name": "session-0",
        "tenant": "acme",
        "begins_at_s": 0.0,
        "one_shot": False,
        "prefix": (5, 6),
        "changes": (Change(0.0, "append", (Document(list(DOCUMENT), "d"),)),),
        "suffix": (7,),
        "pause_s": 2.0,
        "max_tokens": 8,
        "stop_token_id": None,
        "stop_string": None,
        "shows_stop": False,
        "is_stable": False,
        "ttft_slo_ms": None,
        "streamed": True,
        "recovers": True,
        "leaves_after_s": None,
        "read_s": 0.0,
        "context": DOCUMENT,
    }
    return Plan(**defaults | fields)  # type: ignore[arg-type]


def run(roles: dict[str, sv.Role], *faults: Fault, start_s: float = 2.0, **fields: Any) -> Report:
    """The run of one session, in which nothing may be wrong."""
    plans = (a_plan(**fields),)
    script = Script(
        0, roles, plans, faults, start_s=start_s, step_s=0.01, is_tight=False, admission="always"
    )
    report = simulate(script, tiny_tokenizer())
    assert not report.violations, report
    return report


@pytest.mark.parametrize("streamed", [False, True])
def test_a_session_finds_the_two_workers_that_kv_passes_between(streamed: bool) -> None:
    """It took the pair that was cut off from each other again, at each of its restarts."""
    for at_step in MOMENTS:
        cut = Fault(Kind.PARTITION, at_step, "prefill-0", "decode-0", duration_s=40.0)
        report = run(roles_of(1, 2, 2), cut, streamed=streamed)
        assert report.outcomes[0].has_finished, report


def test_a_broken_prefetch_does_not_keep_the_only_decode_worker_from_the_answer() -> None:
    """Its worker became suspect again at the seal, and at each restart, long after the break."""
    for at_step in MOMENTS:
        reset = Fault(Kind.RESET, at_step, "decode-0", "router-0")
        report = run(roles_of(1, 1, 1), reset)
        assert report.outcomes[0].has_finished, report
        assert report.outcomes[0].restarts <= 1, report


def test_a_drain_ends_with_its_process_and_leaves_the_successor_alone() -> None:
    drain = Fault(Kind.DRAIN, 100, "decode-0")
    for later in range(1, 30, 4):
        run(roles_of(1, 1, 2), drain, Fault(Kind.KILL, 100 + later, "decode-0"))


def test_a_router_that_stood_still_does_not_blame_clients_for_being_silent() -> None:
    """What clients had sent meanwhile had not been read when the time for it was over."""
    for at_step in range(1, 60, 4):
        stop = Fault(Kind.STOP, at_step, "router-0", duration_s=14.0)
        report = run(roles_of(1, 1, 1), stop, begins_at_s=1.0)
        assert report.outcomes[0].has_finished, report


@pytest.mark.parametrize("num_routers", [1, 2])
def test_a_new_session_waits_longer_for_a_worker_than_for_a_router(num_routers: int) -> None:
    """Clients of several routers gave up each after ten seconds, and took it for lost."""
    for at_step in (1, 20, 60, 120):
        kill = Fault(Kind.KILL, at_step, "prefill-0")
        roles = roles_of(num_routers, 1, 1)
        report = run(roles, kill, start_s=20.0, begins_at_s=1.0)
        assert report.outcomes[0].has_finished, report
