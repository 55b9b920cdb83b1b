"""What the simulation has found, as scripts that need no seed: each fault at many moments."""

from __future__ import annotations

from typing import Any

import pytest

from stream2llm.client import Document
from stream2llm.cluster import supervision as sv
from tests.simulation.faults import Fault, Kind
from tests.simulation.script import Script, roles_of
from tests.simulation.sessions import Change, Plan
from tests.simulation.simulate import Report, simulate
from tests.simulation.vocabulary import tiny_tokenizer

pytestmark = pytest.mark.sim

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


def run(roles: dict[str, sv.Role], *faults: Fault, **fields: Any) -> Report:
    """The run of one session, in which nothing may be wrong."""
    plans = (a_plan(**fields),)
    script = Script(
        0, roles, plans, faults, start_s=2.0, step_s=0.01, is_tight=False, admission="always"
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
        assert report.outcomes[0].finished, report


def test_a_broken_prefetch_does_not_keep_the_only_decode_worker_from_the_answer() -> None:
    """Its worker became suspect again at the seal, and at each restart, long after the break."""
    for at_step in MOMENTS:
        reset = Fault(Kind.RESET, at_step, "decode-0", "router-0")
        report = run(roles_of(1, 1, 1), reset)
        assert report.outcomes[0].finished, report
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
        assert report.outcomes[0].finished, report
