"""vLLM's NIXL connector, told where the prefilled tokens end.

The stock connector takes it that prefill computed every token of the decode
prompt, and asks for as many blocks. Our decode prompt has one token more: the
first token of the answer, which prefill sampled but never computed. When the
prompt fills its last block exactly, that token opens a block that prefill does
not have, and the stock connector fails an assertion that ends the engine. So
the scheduler's half asks for the prefilled tokens only, and the decode engine
computes the first token's KV itself.
"""

from __future__ import annotations

from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlConnector
from vllm.v1.request import Request


class FirstTokenNixlConnector(NixlConnector):
    """Pulls what prefill computed, never the first token."""

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Tokens to fetch beyond the `num_computed_tokens` that are here, and whether async."""
        num_tokens, is_async = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if not num_tokens:
            return num_tokens, is_async
        assert request.kv_transfer_params is not None
        num_prefilled = request.kv_transfer_params["remote_num_tokens"]
        missing = min(num_tokens, num_prefilled - num_computed_tokens)
        return (missing, is_async) if missing > 0 else (0, False)
