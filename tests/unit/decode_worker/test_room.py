"""What a decode worker refuses before its engine sees it."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from decode_worker.engine import check_room
from stream2llm.api.errors import InvalidRequestError
from stream2llm.engine.vllm_engine import EngineInfo


def test_an_answer_that_fills_the_memory_passes_and_one_token_more_does_not() -> None:
    info = EngineInfo(max_model_len=1000, num_kv_blocks=10, block_size=32, vocab_size=500)
    check_room(320, info)
    with pytest.raises(InvalidRequestError, match=r"for 321 tokens; .* for 320"):
        check_room(321, info)
