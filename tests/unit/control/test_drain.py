"""`stream2llm drain` and the controller's /drain."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from typer.testing import Result

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster.http_body import MAX_SECONDS
from tests.command_lines import cli
from tests.fakes.controller import a_controller, put


class AController:
    """One worker; each look at it after the request finds its next phase."""

    def __init__(self, *phases: str, phase: str = "ready") -> None:
        self.requests: list[tuple[str, float | None, bool]] = []
        self._phases = list(phases)
        self._now = {"name": "decode-0", "phase": phase, "incarnation": 3, "reason": ""}

    def drain(self, name: str, timeout_s: float | None, stays_away: bool) -> list[str]:
        if name != "decode-0":
            raise InvalidRequestError(f"nothing is called {name!r}", field="name")
        self.requests.append((name, timeout_s, stays_away))
        return ["decode-0"] if self._now["phase"] == "ready" else []

    def status(self) -> dict[str, Any]:
        if self.requests and self._phases:
            phase = self._phases.pop(0)
            self._now |= {"phase": phase, "incarnation": 3 + (phase in ("starting", "ready"))}
        return {"replicas": [self._now]}


def served(controller: AController) -> AbstractAsyncContextManager[str]:
    return a_controller(controller.status, drain=controller.drain)


async def command(address: str, *args: str) -> Result:
    words = ["drain", *args, "--controller", address]
    return await asyncio.to_thread(cli, *words)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream2llm.cli.drain._LOOK_INTERVAL_S", 0.0)


async def test_it_returns_when_the_successor_is_ready() -> None:
    controller = AController("draining", "draining", "starting", "starting", "ready")
    async with served(controller) as address:
        done = await command(address, "decode-0", "--time", "120")
    assert (done.exit_code, controller.requests) == (0, [("decode-0", 120.0, False)])
    assert done.stdout.splitlines() == [
        "decode-0 drains",
        "decode-0 is starting",
        "decode-0 is ready",
    ]


async def test_a_removed_one_is_waited_for_until_it_is_gone() -> None:
    controller = AController("draining", "cleaning", "stopped")
    async with served(controller) as address:
        done = await command(address, "decode-0", "--remove")
    assert (done.exit_code, controller.requests) == (0, [("decode-0", None, True)])


async def test_it_says_what_is_wrong() -> None:
    async with served(AController()) as address:
        unknown = await command(address, "decode-9")
    async with served(AController(phase="waiting_for_room")) as address:
        unused = await command(address, "decode-0")
    async with served(AController("draining", "dead")) as address:
        late = await command(address, "decode-0", "--timeout", "0.000001")
    assert (unknown.exit_code, unused.exit_code, late.exit_code) == (3, 3, 4)
    assert "no router or worker is called 'decode-9'; there are decode-0" in unknown.stderr
    assert "decode-0 is not in use: it is waiting for room" in unused.stderr
    assert "after 1e-06 s" in late.stderr


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": 1}, "name"),
        ({"name": "decode-9"}, "name"),
        ({"name": "decode-0", "timeout_s": -1}, "timeout_s"),
        ({"name": "decode-0", "timeout_s": True}, "timeout_s"),
        ({"name": "decode-0", "timeout_s": MAX_SECONDS + 1}, "timeout_s"),
        ({"name": "decode-0", "timeout_s": float("nan")}, "timeout_s"),
        ({"name": "decode-0", "remove": "yes"}, "remove"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(body: dict[str, Any], field: str) -> None:
    controller = AController()
    async with served(controller) as address:
        status, answer = await put(address, "/drain", json.dumps(body).encode())
    assert (status, answer["field"], controller.requests) == (400, field, [])
