"""The order in which a decode worker takes up answers."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from decode_worker.answer_order import AnswerOrder
from stream2llm.api.tenant import MAX_PRIORITY, MIN_PRIORITY, TenantShare
from stream2llm.engine.answer_metrics import AnswerMetrics
from stream2llm.serving.settings.tenant_options import OTHERS, TenantOptions, TenantsOptions
from stream2llm.simulator.decode import Answer, DecodeSettings, DecodeWorker, Link
from stream2llm.simulator.steps import StepLaw

HEAVY, LIGHT = TenantShare("heavy"), TenantShare("light")


def test_one_tenants_answers_keep_the_order_of_submission() -> None:
    order = AnswerOrder()
    ranks = [order.submitted(HEAVY, size).rank for size in (500, 20, 9000, 1)]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == 4


def test_a_light_tenant_goes_before_the_backlog_of_a_heavy_one() -> None:
    order = AnswerOrder()
    backlog = [order.submitted(HEAVY, 1000) for _ in range(5)]
    order.began(backlog[0])
    assert order.submitted(LIGHT, 1000).rank < backlog[1].rank


def test_double_weight_gets_twice_the_room() -> None:
    order = AnswerOrder()
    tags = [
        order.submitted(tenant, 100)
        for _ in range(30)
        for tenant in (TenantShare("double", weight=2.0), TenantShare("single"))
    ]
    first = sorted(tags, key=lambda tag: tag.rank)[:30]
    assert sum(tag.tenant.name == "double" for tag in first) == pytest.approx(20, abs=1)


def test_priorities_come_before_everything_else() -> None:
    order = AnswerOrder()
    high, low = (
        TenantShare("high", priority=MAX_PRIORITY),
        TenantShare("low", priority=MIN_PRIORITY),
    )
    early = order.submitted(low, 1)
    ranks = [order.submitted(high, 10**12).rank for _ in range(10)]
    assert max(ranks) < early.rank < 2**63
    assert min(ranks) > 0


def test_room_that_was_not_used_is_given_back() -> None:
    order = AnswerOrder()
    boastful = order.submitted(HEAVY, 8000)
    order.ended(boastful, num_used_tokens=100)
    again = order.submitted(HEAVY, 100)
    assert again.time - boastful.time == order.submitted(HEAVY, 1).time - again.time


def test_what_tenants_use_is_counted_by_the_configured_ones_and_is_nothing_at_the_end() -> None:
    order = AnswerOrder(TenantsOptions(named={"heavy": TenantOptions()}))
    registry = CollectorRegistry()
    registry.register(AnswerMetrics(order.uses))

    def shown(tenant: str) -> tuple[float | None, ...]:
        name, labels = "stream2llm_tenant_answer", {"tenant": tenant}
        states = (labels | {"state": state} for state in ("waiting", "running"))
        return (
            *(registry.get_sample_value(f"{name}s", each) for each in states),
            registry.get_sample_value(f"{name}_tokens", labels),
            registry.get_sample_value("stream2llm_tenant_decoded_tokens_total", labels),
        )

    assert (shown("heavy"), shown("light")) == ((0, 0, 0, 0), (None,) * 4)
    with order.turn(HEAVY, 100, 50) as first, order.turn(HEAVY, 10, 5), order.turn(LIGHT, 7, 5):
        first.stepped(1)
        first.stepped(2)
        assert (shown("heavy"), shown(OTHERS)) == ((1, 1, 103, 3), (1, 0, 0, 0))
    assert (shown("heavy"), shown(OTHERS)) == ((0, 0, 0, 3), (0, 0, 0, 0))


def test_vllms_queue_follows_the_ranks() -> None:
    """The pinned version's, which the decode engine is set to use."""
    queues = pytest.importorskip("vllm.v1.core.sched.request_queue")
    sampling = pytest.importorskip("vllm").SamplingParams(max_tokens=1)
    request = pytest.importorskip("vllm.v1.request").Request
    queue = queues.create_request_queue(queues.SchedulingPolicy("priority"))
    order, expected = AnswerOrder(), []
    for number in range(8):
        tag = order.submitted(LIGHT if number % 4 == 3 else HEAVY, 100)
        name = str(number)
        queue.add_request(
            request(name, [1], sampling, None, arrival_time=float(number), priority=tag.rank)
        )
        expected.append((tag.rank, number))
    assert [int(queue.pop_request().request_id) for _ in range(8)] == [
        number for _, number in sorted(expected)
    ]


def test_in_the_simulator_the_light_tenants_answer_is_taken_up_next() -> None:
    worker = DecodeWorker(
        DecodeSettings(1000, 1.0, Link(1e9), StepLaw(0.001, 0.0, 0.0), max_sessions=1)
    )
    for number in range(4):
        worker.submit(Answer(f"heavy-{number}", 100, 1, HEAVY))
    taken = []
    for _ in range(3):
        ((_, answer),) = worker.take_up(0.0)
        taken.append(answer.name)
        if len(taken) == 1:
            worker.submit(Answer("light", 100, 1, LIGHT))
        worker.fetched(answer)
        assert worker.end_step(worker.names()) == [answer.name]
    assert taken == ["heavy-0", "light", "heavy-1"]
