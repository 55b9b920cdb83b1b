"""The benchmark's questions and its model of the network."""

from __future__ import annotations

import pytest

from cost_profiles.load import shipped_profile
from cost_profiles.model import CostModel
from experiments.handover_cluster import READ_OVERHEAD_S
from experiments.handover_network import BYTES_PER_TOKEN, HandoverRun, Network
from experiments.handover_plan import questions
from stream2llm.api.handover import HandoverMode
from stream2llm.workload.traces.format import Shape

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def h200() -> CostModel:
    return CostModel(shipped_profile("h200_llama-3.1-8b_tp1"))


@pytest.mark.parametrize("shape", ["crawler", "anns"])
def test_questions_have_the_length_and_the_time_that_are_wanted(shape: Shape) -> None:
    for question in questions(shape, 5, num_tokens=4000, duration_s=3.0, seed=1):
        longest = max(len(tokens) for _, tokens in question.sequences()) - len(question.prefix)
        assert longest == pytest.approx(4000, rel=0.02)
        assert question.arrivals[-1].at_s == pytest.approx(3.0)
        assert question.seal_s == 3.0


def test_what_has_settled_is_what_stays() -> None:
    for question in questions("anns", 5, num_tokens=2000, duration_s=3.0, seed=2):
        settled = [question.num_settled_tokens(at_s) for at_s in (0.0, 1.0, 2.0, 3.0)]
        assert settled == sorted(settled)
        assert settled[0] >= len(question.prefix)
        assert settled[-1] == len(question.prompt) - len(question.suffix)


@pytest.mark.parametrize("shape", ["crawler", "anns"])
@pytest.mark.parametrize("gbit", [25, 400])
def test_handing_over_ahead_leaves_less_to_wait_for(
    h200: CostModel, shape: Shape, gbit: int
) -> None:
    network = Network(gbit * 1e9 / 8)
    asked = questions(shape, 5, num_tokens=9000, duration_s=6.0, seed=3)

    def exposed_s(mode: HandoverMode) -> list[float]:
        return [HandoverRun(each, mode, network, h200).exposed_s() for each in asked]

    at_seal, streamed = exposed_s("at_seal"), exposed_s("streamed")
    assert sum(streamed) < sum(at_seal)
    for question, each_s in zip(asked, at_seal, strict=True):
        num_bytes = len(question.prompt) * BYTES_PER_TOKEN
        assert each_s == pytest.approx(READ_OVERHEAD_S + num_bytes / network.bytes_per_s)
    assert all(each >= READ_OVERHEAD_S for each in streamed)
