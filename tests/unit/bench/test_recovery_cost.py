"""When recovery counts as too dear."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest

from experiments.recovery_cost import Round, in_turn, missed, ratios, run_rounds, table
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config_file import parse_config
from tests.fake_workers import MAX_MODEL_LEN, Brain, FakeWorker


def rounds(factor: float) -> list[Round]:
    times = [factor * (1 + number % 10 / 1000) for number in range(200)]
    return [Round((each, each), 8 * each, 2 * each) for each in times]


def test_each_of_the_two_is_first_in_every_second_round() -> None:
    assert [in_turn(number) for number in range(3)] == [["on", "off"], ["off", "on"], ["on", "off"]]


@pytest.mark.parametrize(("factor", "num_missed"), [(0.9, 0), (1.0, 0), (1.005, 0), (1.05, 3)])
def test_only_what_is_certainly_beyond_one_percent_is_missed(
    factor: float, num_missed: int
) -> None:
    on, off = rounds(factor), rounds(1.0)
    found = ratios(on, off)
    assert len(missed(found)) == num_missed
    assert f"| TTFT | {factor:.4f} |" in table({"on": on, "off": off}, found)


class ClusterWithoutEngines:
    """What a run needs of a cluster."""

    worker_token = ""

    def __init__(self, workers: Sequence[FakeWorker]) -> None:
        self._workers = workers

    def status(self) -> dict[str, Any]:
        replicas = [{"role": each.role, "address": asdict(each.address)} for each in self._workers]
        return {"replicas": replicas}


async def test_both_routers_serve_equal_rounds_on_the_same_workers(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.token_sessions.HIGHEST_ID", 250)  # the tokenizer is small
    config = parse_config(
        {
            "model": str(tiny_model),
            "router": {"port": 0},
            "handover": "at_seal",
            "prefill": {"engine": {"max_model_len": MAX_MODEL_LEN}},
            "decode": {"engine": {"max_model_len": MAX_MODEL_LEN}},
        },
        source="the test",
    )
    args = Namespace(rounds=2, sessions=2, document_tokens=16, answer_tokens=4)
    brain = Brain()
    workers = [FakeWorker(f"{role}-0", role, brain) for role in ("prefill", "decode")]
    for worker in workers:
        await worker.start()
    try:
        cluster = cast("Cluster", ClusterWithoutEngines(workers))
        found = await run_rounds(cluster, config, args)
    finally:
        for worker in workers:
            await worker.kill()
    assert {name: len(each) for name, each in found.items()} == {"on": 2, "off": 2}
    assert all(len(each.ttft_s) == 2 for rounds in found.values() for each in rounds)
    # A warm-up and two rounds of two sessions, through each of the two.
    prompts = [tuple(record.sequence) for record in workers[0].prefill.records]
    assert len(set(prompts)) == len(prompts) == 2 * 3 * 2
