"""A client that stands still holds nothing for long: its connection is there, and answers nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import pytest

from stream2llm.api import grpc_options
from stream2llm.api.grpc_options import Keepalive
from tests.router_ring import Ring

CLIENT = """
import sys
from stream2llm.client import Client, SamplingParameters, TokenDelta

address, moment = sys.argv[1:]
sampling = SamplingParameters(max_tokens=7, ignore_eos=True)
with Client(address) as client, client.session(prefix="begin", sampling=sampling) as session:
    session.append("one two")
    # Kept by name: a session ends with the last reference to its answer.
    answer = session.seal() if moment == "answer" else iter(())
    for event in answer:
        if isinstance(event, TokenDelta):
            break
    print("here", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
async def impatient(make_ring: Any, monkeypatch: pytest.MonkeyPatch) -> Ring:
    """Asks its clients more often than routers do whether they live."""
    monkeypatch.setattr(grpc_options, "_PUBLIC", Keepalive(after_ms=100, timeout_ms=2000))
    ring: Ring = await make_ring()
    return ring


@pytest.mark.parametrize("moment", ["context", "answer"])
async def test_a_client_that_stands_still_loses_its_session(impatient: Ring, moment: str) -> None:
    ring, pipe = impatient, asyncio.subprocess.PIPE
    ring.decode.hold_after_steps = 2
    arguments = [sys.executable, "-c", CLIENT, ring.address.grpc_address, moment]
    client = await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe)
    try:
        assert await client.stdout.readline() == b"here\n"
        await ring.told(1)
        assert ring.num_open == 1
        os.kill(client.pid, signal.SIGSTOP)
        await ring.nothing_is_open()
    finally:
        client.kill()
        await client.wait()
