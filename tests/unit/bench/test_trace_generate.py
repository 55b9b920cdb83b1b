"""Parts of the generators: plans, layouts, scaling, texts, measures and fits."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from stream2llm.workload.traces.fit import FitRow, fit_table
from stream2llm.workload.traces.format import Content, Document, Event, Scale, Session, Shape
from stream2llm.workload.traces.generate import generate
from stream2llm.workload.traces.layout import TOP_K, split
from stream2llm.workload.traces.measure import Samples, statistic
from stream2llm.workload.traces.plan import Plan, Quantiles, coupled, long_enough, plans
from stream2llm.workload.traces.text import TextMaker, count_by_words, sentences, text_of
from tests.traces import a_session

SHAPES: list[Shape] = ["crawler", "anns"]


def generated(shape: Shape, scale: Scale | None = None, count: int = 50) -> list[Session]:
    arrivals = [float(number) for number in range(count)]
    return list(generate(shape, arrivals, 7, scale or Scale()))


def measured(sessions: list[Session], scale: Scale) -> Samples:
    samples = Samples()
    for session in sessions:
        samples.add(session, session.document_table({}), scale)
    return samples


# -- distributions ---------------------------------------------------------------


def test_a_distribution_passes_through_its_quantiles_and_has_ends() -> None:
    quantiles = Quantiles({0.001: 1.0, 0.5: 10.0, 0.999: 50.0})
    assert quantiles.value(0.5) == pytest.approx(10.0)
    assert quantiles.value(1e-6) == pytest.approx(1.0)
    assert quantiles.value(1 - 1e-6) == pytest.approx(50.0)


def test_quantiles_that_fall_are_refused() -> None:
    with pytest.raises(ValueError, match="must grow"):
        Quantiles({0.1: 2.0, 0.9: 1.0})


def test_totals_hold_their_parts() -> None:
    rng = random.Random(3)
    parts = [rng.random() * 10 for _ in range(200)]
    totals = [part + 1 for part in parts]
    rng.shuffle(totals)
    given = long_enough(totals, parts, rng)
    assert sorted(given) == sorted(totals)
    assert all(total >= part for total, part in zip(given, parts, strict=True))
    # A part that fits nowhere gets the largest total.
    assert long_enough([1.0, 5.0], [9.0, 0.5], random.Random(0)) == [5.0, 1.0]


def test_coupled_values_follow_their_keys() -> None:
    assert coupled([3.0, 1.0, 2.0], [10, 30, 20], 1.0, random.Random(0)) == [1.0, 3.0, 2.0]


def test_gaps_that_do_not_fit_shrink() -> None:
    for shape in SHAPES:
        for plan in plans(shape, 300, random.Random(5)):
            assert plan.times_s[0] > 0
            assert list(plan.times_s) == sorted(plan.times_s)


def test_slow_sources_delay_all_but_a_crawl_s_search() -> None:
    assert Plan(100, (2.0, 5.0), begun_s=1.0).delayed(10.0).times_s == (11.0, 41.0)
    begun = {
        shape: [each.begun_s for each in plans(shape, 50, random.Random(5))] for shape in SHAPES
    }
    assert min(begun["crawler"]) > 0
    assert max(begun["anns"]) == 0


def test_longer_gaps_leave_less_time_before_the_first_chunk() -> None:
    usual, longer = (plans("anns", 300, random.Random(5), gap_factor=g) for g in (1.0, 2.5))
    assert sum(each.times_s[0] for each in longer) < sum(each.times_s[0] for each in usual)
    ends = [sorted(each.times_s[-1] for each in found) for found in (usual, longer)]
    assert ends[0] == pytest.approx(ends[1])


# -- sessions --------------------------------------------------------------------


def test_a_split_has_no_empty_part_and_the_whole_total() -> None:
    assert split(11, [1.0, 1.0, 2.0]) == [3, 3, 5]
    assert split(2, [5.0, 0.0, 1.0]) == [1, 1, 1]


def test_crawler_sessions_append_and_anns_sessions_update() -> None:
    kinds = {shape: {e.kind for s in generated(shape) for e in s.events} for shape in SHAPES}
    assert kinds == {"crawler": {"append", "seal"}, "anns": {"update", "seal"}}


def test_an_anns_list_has_one_new_document_at_a_time() -> None:
    for session in generated("anns"):
        for old, new in pairwise(session.lists()):
            assert len(set(new)) == TOP_K
            assert len(set(new) - set(old)) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_seed_decides(shape: Shape) -> None:
    arrivals = [0.0, 1.0, 2.0]
    first = list(generate(shape, arrivals, 1, Scale()))
    assert first == list(generate(shape, arrivals, 1, Scale()))
    assert first != list(generate(shape, arrivals, 2, Scale()))


@pytest.mark.parametrize("shape", SHAPES)
def test_scales_multiply_lengths_and_times(shape: Shape) -> None:
    scale = Scale(tokens=0.1, time=3.0)
    small, whole = generated(shape, scale), generated(shape)
    for one, other in zip(small, whole, strict=True):
        assert one.arrival_s == other.arrival_s
        assert one.events[-1].at_s == pytest.approx(3 * other.events[-1].at_s, abs=1e-6)
    reached = measured(small, scale).tokens
    assert reached == pytest.approx(measured(whole, Scale()).tokens, abs=200)


# -- texts -----------------------------------------------------------------------


def test_texts_are_sentences_of_about_so_many_tokens() -> None:
    text = TextMaker().text(1000, "a key")
    assert count_by_words(text) == pytest.approx(1000, rel=0.01)
    assert text.split(". ")[0].strip(".") in " ".join(sentences())


def test_equal_keys_give_equal_texts_and_other_keys_do_not() -> None:
    maker = TextMaker()
    assert maker.text(200, "q1/p0") == maker.text(200, "q1/p0")
    assert maker.text(200, "q1/p0") != maker.text(200, "q1/p1")


def test_a_tokenizer_is_believed() -> None:
    maker = TextMaker(len)  # a token for each character
    content = maker.content(500, "key")
    assert content.tokens == len(content.text) == pytest.approx(500, abs=15)


def test_generated_text_is_counted_and_the_prefix_is_one_for_all() -> None:
    sessions = list(generate("crawler", [0.0, 1.0], 1, Scale(tokens=0.05), TextMaker()))
    assert sessions[0].prefix == sessions[1].prefix
    assert sessions[0].suffix != sessions[1].suffix
    for session in sessions:
        for document in session.documents:
            assert document.tokens == count_by_words(document.text)


def test_filler_stands_for_token_counts_only() -> None:
    maker = TextMaker()
    assert text_of(Content(text="mine", tokens=90), maker, "k") == "mine"
    assert text_of(Document("a", tokens=90), maker, "k") == maker.text(90, "k")
    assert text_of(Content(tokens=0), maker, "k") == ""


# -- measures --------------------------------------------------------------------


def test_a_session_is_measured_and_scaled_back() -> None:
    samples = measured([a_session()], Scale(tokens=0.5, time=2.0))
    # prefix 1 word, suffix 5, documents 100 and 3; the update took back 100.
    assert samples == Samples([2 * (1 + 5 + 103)], [0.75], [2], [500.0], [200.0])


def test_appends_invalidate_nothing() -> None:
    events = (Event(0.5, "append", ("a",)), Event(1.0, "append", ("b",)), Event(1.0, "seal"))
    assert measured([a_session(events=events)], Scale()).invalidated == [0]


def test_statistics() -> None:
    values = [4.0, 1.0, 2.0, 3.0, 5.0]
    names = ("mean", "median", "min", "max", "P25", "P90")
    assert [statistic(values, name) for name in names] == [3.0, 3.0, 1.0, 5.0, 2.0, 4.6]


def test_a_fit_table_names_what_was_missed() -> None:
    rows = [FitRow("tokens", "P50", 100.0, 109.0), FitRow("tokens", "P95", 100.0, 89.0)]
    assert [row.is_met for row in rows] == [True, False]
    assert "| tokens | P95 | 100 | 89 | 0.890 | MISSED |" in fit_table(rows)
    assert FitRow("invalidated", "share", 0.1, 0.5, at_least=True).is_met
    assert not FitRow("invalidated", "share", 0.1, 0.09, at_least=True).is_met
