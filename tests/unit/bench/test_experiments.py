"""The experiments: each runs and stands in the docs; and the pure parts of some of them."""

from __future__ import annotations

import random
from argparse import ArgumentParser
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import tenants_live
from experiments.__main__ import EXPERIMENTS, main, overview
from experiments.deadline_bound import Demand, demands, fewest_missed, final_ranges, least_seconds
from experiments.document_orders import MODELS, UpdateModel, generated, outcome_of, table, verdict
from experiments.handover_cluster import READ_OVERHEAD_S, Cell, exposed_s, play
from experiments.handover_network import asked_alone
from experiments.handover_plan import num_settled_tokens, questions
from experiments.token_sessions import prompt_ids, splices
from experiments.validate_simulator import Trial, fitting_sessions
from stream2llm.api.handover import HANDOVER_MODES
from stream2llm.serving.settings.worker_options import PrefillOptions
from stream2llm.simulator.steps import StepLaw
from stream2llm.simulator.work import Change, Task, tasks
from stream2llm.workload.document_orders import (
    ORDERS,
    Lists,
    invalidated,
    laid_out,
    left,
    with_foresight,
)
from stream2llm.workload.traces.format import Shape

# -- the table ----------------------------------------------------------------------------


PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_explains_its_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    assert f"python -m experiments {name}" in capsys.readouterr().out


def test_without_a_name_the_table_is_printed_as_it_stands_in_the_docs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == overview()
    assert overview() in PAGE.read_text(), "copy what `python -m experiments` prints"


def test_an_unknown_experiment_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["nothing"]) == 2
    assert "planning" in capsys.readouterr().err


def test_a_missed_bound_fails_where_it_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["document-orders", "--queries", "30", "--seeds", "1"]
    assert main(options) == 0
    assert "missed: " in capsys.readouterr().out
    assert main([*options, "--check"]) == 1


# -- the trace with which the simulator is held against a live cluster --------------------


LAW = StepLaw(0.016, 0.00054, 4e-7)
TRIAL = Trial("anns", 80, load=0.6, policy="srpf", seed=1)


def test_sessions_that_were_too_long_at_any_moment_are_left_out():
    every = fitting_sessions(TRIAL, LAW, 512, 10**9, None)
    short = fitting_sessions(TRIAL, LAW, 512, 7782, None)
    kept = {session.id for session in short}
    left_out = [task for task in tasks(every) if task.name not in kept]
    assert len(every) == 80
    assert left_out
    assert all(task.num_longest_tokens > 7782 for task in left_out)
    assert any(task.num_tokens <= 7782 for task in left_out), "one that fits at its seal"
    assert all(task.num_longest_tokens <= 7782 for task in tasks(short))


def test_the_load_is_that_of_the_sessions_that_are_kept():
    every = fitting_sessions(TRIAL, LAW, 512, 10**9, None)
    assert fitting_sessions(TRIAL, LAW, 512, 7782, None)[-1].arrival_s < every[-1].arrival_s


# -- the questions that measure hand-overs ------------------------------------------------


# Llama 3.1 8B: 32 layers, 8 KV heads of 128, keys and values, 2 bytes each.
BYTES_PER_TOKEN = 32 * 8 * 128 * 2 * 2


@pytest.mark.parametrize("shape", ["crawler", "anns"])
def test_questions_have_the_length_and_the_time_that_are_wanted(shape: Shape) -> None:
    for question in questions(shape, 5, num_tokens=4000, duration_s=3.0, seed=1):
        longest = max(each.num_tokens for each in splices(question)[:-1])
        assert longest - splices(question)[0].num_tokens == pytest.approx(4000, rel=0.02)
        assert question.steps[-1].due_s == pytest.approx(3.0)
        assert question.seal_due_s == 3.0


def test_what_has_settled_is_what_stays() -> None:
    for question in questions("anns", 5, num_tokens=2000, duration_s=3.0, seed=2):
        settled = [num_settled_tokens(question, at_s) for at_s in (0.0, 1.0, 2.0, 3.0)]
        assert settled == sorted(settled)
        assert settled[0] >= splices(question)[0].num_tokens
        assert settled[-1] == len(prompt_ids(question))


@pytest.mark.parametrize("shape", ["crawler", "anns"])
@pytest.mark.parametrize("gbit", [25, 400])
def test_handing_over_ahead_leaves_less_to_wait_for(shape: Shape, gbit: int) -> None:
    asked = asked_alone(shape, 5, num_tokens=9000, duration_s=6.0)
    at_seal, streamed = (exposed_s(play(Cell(shape, gbit, mode), asked)) for mode in HANDOVER_MODES)
    assert sum(streamed) < sum(at_seal)
    for task, each_s in zip(asked, at_seal, strict=True):
        read_s = READ_OVERHEAD_S + task.num_tokens * BYTES_PER_TOKEN / (gbit * 1e9 / 8)
        # And a step of decode.
        assert read_s < each_s < read_s + 0.02
    assert all(each > READ_OVERHEAD_S for each in streamed)


# -- tenants on a live cluster ------------------------------------------------------------


def test_a_light_client_is_asked_beside_twenty_long_prompts_under_the_shipped_budget() -> None:
    parser = ArgumentParser()
    tenants_live.add_options(parser)
    args = parser.parse_args([])
    heavy = tenants_live.plan_of(args).heavy
    assert (heavy.num_at_once, heavy.num_tokens) == (20, 3900)
    assert args.shared_token_budget == PrefillOptions().shared_token_budget
    quick = tenants_live.plan_of(parser.parse_args(["--quick", "--questions", "3"]))
    assert quick == replace(tenants_live.QUICK, num_questions=3)
    assert quick.heavy.num_tokens < heavy.num_tokens


# -- the orders of documents --------------------------------------------------------------


SIZES = {"a": 1, "b": 10, "c": 100, "d": 1_000, "e": 10_000}


def a_session(*lists: str) -> Lists:
    return Lists(tuple(map(tuple, lists)), SIZES)


def test_each_order_lays_out_its_way() -> None:
    lists = ["abc", "eca"]
    stand = {name: "".join([*laid_out(lists, order)][-1]) for name, order in ORDERS.items()}
    assert stand == {"as_given": "eca", "stable": "aec", "survivors first": "ace"}


def test_what_stands_behind_the_first_change_is_invalidated() -> None:
    session = a_session("abc", "dab", "dab")
    counts = {name: invalidated(session, order) for name, order in ORDERS.items()}
    assert counts == {"as_given": 111, "stable": 100, "survivors first": 100}
    assert left(session) == 100


def test_foresight_lays_out_anew_before_it_costs_more() -> None:
    """d, put behind c, is lost when c leaves: better to compute c again, behind d."""
    session = a_session("bc", "dbc", "db")
    assert invalidated(session, ORDERS["stable"]) == 1_100
    assert with_foresight(session) == 200


def test_foresight_is_never_worse_and_never_below_what_leaves() -> None:
    for seed, model in enumerate(MODELS.values()):
        drawn = model.redraw(a_session(*["abcde"] * 5), random.Random(seed))
        best = with_foresight(drawn)
        assert left(drawn) <= best
        assert model.reranks or best <= min(invalidated(drawn, each) for each in ORDERS.values())


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_changes_what_it_says(model: UpdateModel) -> None:
    drawn = model.redraw(a_session(*["abcde"] * 4), random.Random(1))
    for old, new in zip(drawn.lists, drawn.lists[1:], strict=False):
        assert len({*new} - {*old}) == model.num_new
        assert len({*old} - {*new}) == (0 if model.grows else model.num_new)
        assert len(new) == len(old) + (model.num_new if model.grows else 0)


def test_the_published_workload_saves_little_and_one_that_inserts_anywhere_much() -> None:
    """Where documents come in near the end, nearly half of what is lost is what leaves."""
    sessions = generated(300, seed=1)
    here = outcome_of(sessions)
    assert 0.5 < here.foresight < here.ratio("stable") < 0.8
    assert here.ratio("left") > 0.4
    assert "MISSED" in verdict(here)
    rng = random.Random(1)
    anywhere = outcome_of([MODELS["anywhere"].redraw(each, rng) for each in sessions])
    assert anywhere.ratio("stable") < 0.5
    assert "; met" in verdict(anywhere)
    assert table("model", {"anywhere": anywhere}).count("|") == 3 * 12


# -- the fewest deadlines that must be missed ---------------------------------------------


# A second a token, and eight more a step.
SLOW = StepLaw(8.0, 1.0, 0.0)


def at_once(*sessions: tuple[float, float, float]) -> list[Demand]:
    """Sessions of (seal, due, work), all of which comes with the seal."""
    return [Demand(seal, due, ((seal, work),)) for seal, due, work in sessions]


def test_tokens_count_from_when_they_come_for_good() -> None:
    changes = (
        Change(0.0, 0, 10, seals=False),
        Change(1.0, 10, 30, seals=False),
        Change(2.0, 15, 40, seals=False, is_update=True),
        Change(3.0, 40, 44, seals=True),
    )
    task = Task("a", changes, ttft_slo_s=5.0)
    assert list(final_ranges(task)) == [(3.0, 40, 44), (2.0, 15, 40), (1.0, 10, 15), (0.0, 0, 10)]
    (demand,) = demands([task], SLOW, token_budget=8)
    assert (demand.sealed_s, demand.due_s) == (3.0, 8.0)
    assert demand.work_s(0.0) == pytest.approx(88.0)
    assert demand.work_s(2.0) == pytest.approx(58.0)


def test_tokens_take_their_share_of_full_steps() -> None:
    assert least_seconds(SLOW, 8, 0, 8) == 16.0
    assert least_seconds(SLOW, 8, 4, 8) == 8.0
    assert least_seconds(SLOW, 8, 0, 80) == 160.0


@pytest.mark.parametrize(
    ("sessions", "missed"),
    [
        (at_once((0, 1, 1), (0, 2, 1)), 0),
        (at_once((0, 1, 1), (0, 1, 1)), 1),
        # The largest goes.
        (at_once((0, 9, 9), (0, 10, 1), (0, 10, 1)), 1),
        # Two overloads, one after the other.
        (at_once((0, 1, 1), (0, 1, 1), (5, 6, 1), (5, 6, 1)), 2),
        # What came before the seal may have been computed.
        ([Demand(9, 10, ((9, 1), (0, 8))), Demand(9, 10, ((9, 0), (0, 1)))], 0),
    ],
)
def test_the_fewest_that_miss(sessions: list[Demand], missed: int) -> None:
    assert fewest_missed(sessions) == missed


small = st.integers(0, 5)


@st.composite
def streamed(draw: st.DrawFn) -> Demand:
    """A session that brings some work when it opens, and some with its seal."""
    opened, seal = sorted((draw(small), draw(small)))
    return Demand(seal, seal + 1 + draw(small), ((seal, draw(small)), (opened, draw(small))))


@given(st.lists(streamed(), min_size=1, max_size=6))
def test_no_choice_of_sessions_that_can_all_be_in_time_is_larger(sessions: list[Demand]) -> None:
    feasible = max(
        size
        for size in range(len(sessions) + 1)
        for chosen in combinations(sessions, size)
        if are_in_time(chosen)
    )
    assert len(sessions) - fewest_missed(sessions) >= feasible


def are_in_time(chosen: tuple[Demand, ...]) -> bool:
    """Whether the earliest deadline first, which is optimal when all can be met, meets them."""
    left = [[each.due_s, *piece] for each in chosen for piece in each.pieces]
    for second in range(20):
        for piece in sorted(left):
            if piece[2] and piece[1] <= second:
                piece[2] -= 1
                break
        if any(work and due <= second + 1 for due, _, work in left):
            return False
    return True
