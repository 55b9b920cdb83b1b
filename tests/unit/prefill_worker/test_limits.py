"""What a prefill worker refuses before its engine sees it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from prefill_worker.limits import check_context
from stream2llm.api.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Sizes:
    max_model_len: int = 1000
    num_kv_blocks: int = 10
    block_size: int = 32


@pytest.mark.parametrize(
    ("sizes", "longest"),
    [(Sizes(), 320), (Sizes(max_model_len=320), 319), (Sizes(max_model_len=321), 320)],
)
def test_a_context_up_to_the_limit_passes(sizes: Sizes, longest: int) -> None:
    check_context(0, sizes)
    check_context(longest, sizes)
    with pytest.raises(InvalidRequestError) as raised:
        check_context(longest + 1, sizes)
    assert (raised.value.field, raised.value.reason) == ("splice.token_ids", "CONTEXT_TOO_LONG")


def test_the_error_says_which_limit_it_was() -> None:
    with pytest.raises(InvalidRequestError, match=r"1000 tokens; .* 1000 \(max_model_len\)"):
        check_context(1000, Sizes(num_kv_blocks=1000))
    message = "321 tokens and needs 11 KV blocks of 32 tokens; .* has 10 in all"
    with pytest.raises(InvalidRequestError, match=message):
        check_context(321, Sizes())
