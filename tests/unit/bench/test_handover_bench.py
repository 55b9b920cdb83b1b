"""The questions that measure hand-overs, and what the simulated network makes of them."""

from __future__ import annotations

import pytest

from experiments.handover_cluster import READ_OVERHEAD_S, Cell, exposed_s, play
from experiments.handover_network import asked_alone
from experiments.handover_plan import num_settled_tokens, questions
from experiments.token_sessions import prompt_ids, splices
from stream2llm.api.handover import HANDOVER_MODES
from stream2llm.workload.traces.format import Shape

pytestmark = pytest.mark.unit
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
