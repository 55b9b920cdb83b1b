"""What the service makes of the scheduler's words."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from prefill_worker.service import _progress
from stream2llm.v1 import inference_pb2 as pb

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("told", "sent"),
    [
        ({}, pb.DELAY_REASON_UNSPECIFIED),
        ({"delay": ""}, pb.DELAY_REASON_UNSPECIFIED),
        ({"delay": "kv_memory"}, pb.DELAY_REASON_KV_MEMORY),
        ({"delay": "kv_leased"}, pb.DELAY_REASON_KV_LEASED),
    ],
)
def test_a_delay_becomes_its_reason(told: dict[str, str], sent: int) -> None:
    message = _progress({"revision": 2, "known_tokens": 7, **told})
    assert (message.revision, message.known_tokens, message.delay) == (2, 7, sent)
