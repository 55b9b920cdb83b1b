"""KV that is overwritten on its way to decode, on real engines and NIXL: never text.

Answers are those of a model that any wrong KV changes. Without digests each of these
requests would be answered with other tokens, as if nothing had happened.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from decode_worker.digest_check import BadKv
from decode_worker.fetch_orders import FetchEnd, FetchResult
from prefill_worker.session_state import WIRE_KEY
from tests.reference_engine import ReferenceEngine
from tests.two_engines import BLOCK_SIZE, Answer, TwoEngines

pytestmark = pytest.mark.slow

# Four blocks, the last one not full, of a model with six layers.
PROMPT = random.Random(5).choices(range(40_000), k=3 * BLOCK_SIZE + 11)
NUM_BLOCKS, NUM_LAYERS, NUM_TOKENS = 4, 6, 8
# Others combine their parts in the same way: tests/property/test_kv_digest.py has all.
RANKS = [(2, 1)]


@pytest.fixture(
    scope="module", params=RANKS, ids=[f"tp{prefill}-to-{decode}" for prefill, decode in RANKS]
)
def ranks(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def engines(
    ranks: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TwoEngines]:
    if max(ranks) > len(os.sched_getaffinity(0)):
        pytest.skip("vLLM binds each rank to a core of its own")
    with TwoEngines(tmp_path_factory.mktemp("corrupt"), *ranks) as engines:
        yield engines


def prefilled(engines: TwoEngines, name: str, tokens: list[int]) -> Answer:
    """The first token, and what a decode worker gets of its hand-over."""
    first = engines.prefill(name, tokens)
    assert first.finish_reason == "length"
    params = {key: value for key, value in first.params.items() if key != WIRE_KEY}
    return first._replace(params=params)


def test_any_block_in_any_layer_on_any_rank(
    engines: TwoEngines, reference: ReferenceEngine, ranks: tuple[int, int]
) -> None:
    """The same prompt again and again: nothing of a bad read has stayed in decode's cache."""
    number = 0
    for rank in range(ranks[1]):
        for block in range(NUM_BLOCKS):
            for layer in range(NUM_LAYERS):
                number += 1
                first = prefilled(engines, f"p{number}", PROMPT)
                engines.corrupt(block, layer, rank)
                answer = engines.decode(f"d{number}", PROMPT, first, NUM_TOKENS)
                engines.corrupt_no_more()
                bad = BadKv.from_wire(answer.params)
                assert (answer.tokens, answer.finish_reason) == ([], "error")
                assert bad == BadKv(1, f"1 values differ: block {block} layer {layer}")
    first = prefilled(engines, "right", PROMPT)
    answer = engines.decode("right", PROMPT, first, NUM_TOKENS - 1)
    assert [*first.tokens, *answer.tokens] == reference.answer(PROMPT, NUM_TOKENS)


def test_a_bad_prefetch_is_read_again(engines: TwoEngines, reference: ReferenceEngine) -> None:
    context = [7, *PROMPT[1 : 3 * BLOCK_SIZE]]
    engines.corrupt(1, 3, -1)
    bad = engines.fetch("f1", context, prefilled(engines, "f1", context))
    engines.corrupt_no_more()
    assert BadKv.from_wire(bad.params) is not None
    good = engines.fetch("f2", context, prefilled(engines, "f2", context))
    result = FetchResult.from_wire(good.params)
    assert (result.end, result.num_blocks) == (FetchEnd.FETCHED, 3)
    prompt = [*context, *PROMPT[3 * BLOCK_SIZE :]]
    first = prefilled(engines, "whole", prompt)
    answer = engines.decode("whole", prompt, first, NUM_TOKENS - 1)
    assert [*first.tokens, *answer.tokens] == reference.answer(prompt, NUM_TOKENS)
