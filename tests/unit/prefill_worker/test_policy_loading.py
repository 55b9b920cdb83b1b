"""Policies by import path: found, tried, and kept from ending an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefill_worker.policy import POLICIES
from prefill_worker.policy_loading import Guard, find_policies, find_policy, require_policy
from prefill_worker.rank_index import RankIndex
from stream2llm.api.errors import InvalidRequestError
from tests.builders import a_request
from tests.example_policy import install_example, install_module
from tests.planner_driver import PlannerDriver
from tests.refusals import refused

pytestmark = pytest.mark.unit

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
