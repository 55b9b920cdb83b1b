"""The order in which each policy serves and evicts.

Policies by import path: found, tried, and kept from ending an engine.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from prefill_worker.policy import POLICIES
from prefill_worker.policy_loading import Guard, find_policies, find_policy, require_policy
from prefill_worker.rank_index import RankIndex
from stream2llm.api.errors import InvalidRequestError
from tests.builders import a_ranking, a_request
from tests.example_policy import install_example, install_module
from tests.planner_driver import PlannerDriver
from tests.refusals import refused

# arrival, last event, computed of known tokens
SEALED_LATE = a_request(
    "sealed-late", sealed=True, arrival=5, last_event=5, known=90, computed=10, num_blocks=1
)
SEALED_NEW = a_request("sealed-new", sealed=True, arrival=4, last_event=9, known=90)
OPEN_OLD = a_request("open-old", arrival=1, last_event=8, known=90, computed=40, num_blocks=2)
OPEN_NEW = a_request("open-new", arrival=3, last_event=7, known=90, computed=20, num_blocks=1)
IDLE = a_request("idle", arrival=2, last_event=2, known=90, computed=89, num_blocks=3)
ALL = (SEALED_LATE, SEALED_NEW, OPEN_OLD, OPEN_NEW, IDLE)


@pytest.mark.parametrize(
    ("policy", "served", "evicted"),
    [
        (
            "fcfs",
            ["sealed-new", "sealed-late", "open-old", "open-new"],
            ["idle", "open-new", "open-old", "sealed-late"],
        ),
        (
            "lcas",
            ["sealed-late", "sealed-new", "open-new", "open-old"],
            ["idle", "open-old", "open-new", "sealed-late"],
        ),
        (
            "srpf",
            ["sealed-late", "sealed-new", "open-old", "open-new"],
            ["idle", "open-new", "open-old", "sealed-late"],
        ),
        (
            "mcps",
            ["open-old", "open-new", "sealed-late", "sealed-new"],
            ["idle", "open-new", "open-old", "sealed-late"],
        ),
        (
            "default",
            ["open-old", "open-new", "sealed-late", "sealed-new"],
            ["sealed-late", "open-new", "idle", "open-old"],
        ),
    ],
)
def test_the_order(policy: str, served: list[str], evicted: list[str]) -> None:
    ranking = a_ranking(*ALL, policy=policy)
    assert [view.request_id for view in ranking.to_serve()] == served
    assert [view.request_id for view in ranking.to_evict()] == evicted


@pytest.mark.parametrize(("work_between", "first"), [(999, "short"), (1001, "long")])
def test_srpf_lets_a_shorter_one_go_first_if_it_comes_soon_enough(
    work_between: int, first: str
) -> None:
    """Ten tokens more are worth a thousand of the worker's."""
    long = a_request("long", sealed=True, arrival=1, last_event=1, known=50)
    short = a_request("short", sealed=True, arrival=2, last_event=2, known=40)
    later = short._replace(last_event_work=work_between)
    assert next(a_ranking(long, later, policy="srpf").to_serve()).request_id == first


@pytest.mark.parametrize("policy", POLICIES)
def test_guarded_sessions_come_first_and_keep_their_kv_longest(policy: str) -> None:
    guarded = [
        a_request(f"p{n}", arrival=90 + n, known=50, computed=1, num_blocks=1, guard_number=n)
        for n in (2, 1)
    ]
    ranking = a_ranking(*ALL, *guarded, policy=policy, guarded_first=True)
    assert [view.request_id for view in ranking.to_serve()][:2] == ["p1", "p2"]
    assert [view.request_id for view in ranking.to_evict()][-2:] == ["p2", "p1"]
    assert ranking.goes_before(guarded[1], guarded[0])
    assert ranking.goes_before(guarded[0], SEALED_LATE)


@pytest.mark.parametrize("policy", POLICIES)
def test_when_it_is_not_their_turn_guarded_sessions_still_keep_their_kv(policy: str) -> None:
    guarded = a_request("p", arrival=90, known=50, computed=1, num_blocks=1, guard_number=1)
    ranking = a_ranking(*ALL, guarded, policy=policy)
    assert next(ranking.to_serve()) is not guarded
    assert not any(ranking.goes_before(view, guarded) for view in ALL)


VIEWS = (
    a_request("old", sealed=True, arrival=1, known=90, num_blocks=1, computed=10),
    a_request("new", sealed=True, arrival=3, known=90),
    a_request("open", arrival=4, known=90, num_blocks=5, computed=60),
)


def served(ranking: RankIndex) -> list[str]:
    return [view.request_id for view in ranking.to_serve()]


def test_the_example_of_the_docs_ranks_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_example(tmp_path, monkeypatch)
    lifo, careful = (find_policy(f"{module}:{name}") for name in ("lifo", "careful"))
    orders = {}
    for policy in (lifo, careful):
        ranking = RankIndex(policy)
        for view in VIEWS:
            ranking.put(view)
        orders[policy.name] = (
            served(ranking),
            [view.request_id for view in ranking.to_evict()],
            ranking.keeps_sealed_apart,
        )
    assert orders == {
        "example:lifo": (["new", "old", "open"], ["open", "old"], False),
        "example:careful": (["old", "new", "open"], ["open", "old"], True),
    }


def test_the_planner_serves_by_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install_example(tmp_path, monkeypatch)
    driver = PlannerDriver(policy=f"{module}:lifo", token_budget=8, step_requests=4)
    for number, name in enumerate(("first", "second", "third")):
        driver.open(name, tuple(range(100 * number, 100 * number + 8)), hand_over=False)
        driver.seal(name, ())
    while driver.has_work():
        driver.step()
    driver.check()
    assert list(driver.answers()) == ["third", "second", "first"]


def test_sessions_with_equal_keys_are_served_by_arrival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_module(tmp_path, monkeypatch, "equals", "def same(view): return (0,)")
    ranking = RankIndex(find_policy(f"{module}:same"))
    for view in reversed(VIEWS):
        ranking.put(view)
    assert served(ranking) == ["old", "new", "open"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no_such_module:lifo", "cannot be imported: ModuleNotFoundError: No module named"),
        ("no_such_module:lifo", ".*; install it, or name its folder in PYTHONPATH"),
        ("broken:lifo", "cannot be imported: AttributeError: module 'broken' has no attribute"),
        ("broken:number", "is a int, neither a function of a RequestView nor a Policy"),
        ("broken:raises", "failed for .*ZeroDivisionError"),
        ("broken:returns_text", "failed for .*the key is 'a', not a tuple of whole numbers"),
        ("broken:returns_none", "failed for .*the key is None"),
        ("broken:returns_floats", r"failed for .*the key is \(1\.5,\)"),
        ("broken:takes_two", "failed for .*TypeError"),
    ],
)
def test_what_is_no_policy_is_refused_by_field(
    path: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
number = 5
def raises(view): return (1 // 0,)
def returns_text(view): return "a"
def returns_none(view): pass
def returns_floats(view): return (1.5,)
def takes_two(view, other): return ()
"""
    install_module(tmp_path, monkeypatch, "broken", code)
    with refused(
        f"prefill.policy: the policy {path} {problem}", field="prefill.policy", reason="BAD_POLICY"
    ):
        find_policy(path, "prefill.policy")


def test_a_name_that_is_none_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequestError, match=f"'lifo'; there are {', '.join(POLICIES)}$"):
        find_policy("lifo")
    assert require_policy("mine:lifo", ["mine:lifo"]) == "mine:lifo"
    with pytest.raises(InvalidRequestError, match=r"'os:system'; there are .*, mine:lifo"):
        require_policy("os:system", ["mine:lifo"])


def test_a_policy_that_fails_later_hands_over_to_its_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
def fragile(view):
    if view.num_known_tokens > 1000:
        raise LookupError("too long")
    return (-view.arrival,)
"""
    path = install_module(tmp_path, monkeypatch, "fragile", code) + ":fragile"
    guard = Guard()
    ranking = RankIndex(guard.around(find_policies([path])[path], POLICIES["fcfs"]))
    for view in VIEWS:
        ranking.put(view)
    assert (served(ranking), guard.error) == (["open", "new", "old"], None)
    ranking.put(a_request("long", sealed=True, arrival=5, known=2000))
    assert isinstance(guard.error, LookupError)
    ranking.set_policy(POLICIES["fcfs"])
    assert served(ranking) == ["old", "new", "long", "open"]


def test_a_script_that_ends_its_process_when_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scripted.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with refused("cannot be imported: SystemExit", field="prefill.policy"):
        find_policy("scripted:lifo", field="prefill.policy")
