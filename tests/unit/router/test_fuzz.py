"""Requests that no client of ours sends, to a real router with fake workers.

The same cases go to a router with real ones, fewer at a time, in
tests/integration/cluster/test_fuzz.py.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from google.protobuf.message import Message

from tests import fuzz_rpcs as rpcs
from tests.router_ring import Ring
from tests.rpc_fuzz import Case, mutants

NUM_AT_ONCE = 8


@pytest.mark.parametrize(
    ("name", "messages"), [("StreamGenerate", rpcs.stream_generate), ("Generate", rpcs.generate)]
)
async def test_every_session_ends_with_a_status_that_says_whose_fault_it_was(
    ring: Ring, name: str, messages: Callable[[], Sequence[Message]]
) -> None:
    at_once = asyncio.Semaphore(NUM_AT_ONCE)
    wrong: list[str] = []
    codes: Counter[str] = Counter()

    async def play(case: Case) -> None:
        async with at_once:
            code, told = await rpcs.end_of(ring.channel, f"StreamingInferenceService/{name}", case)
            codes[code] += 1
            if told:
                wrong.append(f"{case.name}: {told}")

    async with asyncio.TaskGroup() as group:
        for case in mutants(messages(), random.Random(1)):
            group.create_task(play(case))
    assert not wrong, "\n".join(wrong)
    rpcs.check_codes(codes)
    await ring.nothing_is_open()
