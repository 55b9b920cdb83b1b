"""`stream2llm rollout` and the controller's /rollout."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from typing import Any

import pytest
from typer.testing import Result

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster.http_body import MAX_SECONDS
from tests.command_lines import check_failed, cli
from tests.fakes.controller import a_controller, put


class Rolling:
    """Each look at the status finds the next of what is to come."""

    def __init__(self, *coming: dict[str, Any]) -> None:
        self.requests: list[tuple[list[str], float | None, float]] = []
        self.num_stops = 0
        self._coming = list(coming)

    def begin(self, names: Collection[str], drain_s: float | None, limit_s: float) -> list[str]:
        if "x" in names:
            raise InvalidRequestError("nothing is called 'x'", field="names")
        self.requests.append((list(names), drain_s, limit_s))
        return ["decode-0", "router-0"]

    def stop(self) -> list[str]:
        self.num_stops += 1
        return ["router-0"]

    def status(self) -> dict[str, Any]:
        first = self._coming[0] if self._coming else None
        if len(self._coming) > 1:
            self._coming.pop(0)
        return {"replicas": [], "rollout": first}


def a_rollout(*replaced: str, now: str = "draining", **fields: Any) -> dict[str, Any]:
    left = [name for name in ("decode-0", "router-0") if name not in replaced]
    return {
        "state": "running" if left else "done",
        "replaced": list(replaced),
        "left": left,
        "now": now,
        "no_room": {},
        "reason": "",
    } | fields


async def command(rolling: Rolling, *words: str) -> Result:
    async with a_controller(rolling.status, rollout=rolling) as address:
        args = ["rollout", *words, "--controller", address]
        return await asyncio.to_thread(cli, *args)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream2llm.cli.rollout._LOOK_INTERVAL_S", 0.0)


async def test_it_prints_each_change_once_and_returns_at_the_end() -> None:
    no_room = {"decode-0": "no node has 1 GPU"}
    rolling = Rolling(
        a_rollout(now="ready"),
        a_rollout(no_room=no_room),
        a_rollout(no_room=no_room),
        a_rollout(now="starting"),
        a_rollout("decode-0"),
        a_rollout("decode-0", "router-0"),
    )
    done = await command(rolling, "restart", "--time", "120")
    assert (done.exit_code, rolling.requests) == (0, [([], 120.0, 900.0)])
    assert done.stdout.splitlines() == [
        "replaces decode-0, router-0",
        "decode-0 is ready",
        "decode-0 gets no stand-in, sessions wait for its successor: no node has 1 GPU",
        "decode-0 is draining",
        "decode-0 is starting",
        "decode-0 is replaced (1 of 2)",
        "router-0 is draining",
        "router-0 is replaced (2 of 2)",
    ]


async def test_names_and_limits_are_passed_on_and_nothing_is_waited_for() -> None:
    rolling = Rolling(a_rollout())
    done = await command(rolling, "restart", "decode-0", "--limit", "60", "--no-wait")
    assert (done.exit_code, rolling.requests) == (0, [(["decode-0"], None, 60.0)])
    assert done.stdout.splitlines() == ["replaces decode-0, router-0"]


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (
            a_rollout(state="failed", reason="decode-0 does not come up: no GPU"),
            "has failed: decode-0 does not come up: no GPU; not replaced: decode-0, router-0",
        ),
        (a_rollout("decode-0", state="stopped"), "was stopped; not replaced: router-0"),
    ],
)
async def test_what_did_not_replace_all_is_an_error(last: dict[str, Any], says: str) -> None:
    begun = await command(Rolling(a_rollout(), last), "restart")
    looked_at = await command(Rolling(last), "status", "--no-wait")
    assert (begun.exit_code, looked_at.exit_code) == (4, 4)
    assert says in begun.stderr
    assert says in looked_at.stderr


async def test_one_may_look_later_and_stop_it() -> None:
    followed = await command(Rolling(a_rollout(), a_rollout("decode-0", "router-0")), "status")
    assert (followed.exit_code, followed.stdout.splitlines()[-1]) == (
        0,
        "router-0 is replaced (2 of 2)",
    )
    none = await command(Rolling(), "status")
    check_failed(none, 3, "there was no rolling restart")
    rolling = Rolling()
    stopped = await command(rolling, "stop")
    assert (stopped.exit_code, rolling.num_stops) == (0, 1)
    assert stopped.stdout == "not replaced: router-0\n"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "names"),
        ({"names": "decode-0"}, "names"),
        ({"names": [1]}, "names"),
        ({"names": ["x"]}, "names"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"limit_s": "long"}, "limit_s"),
        ({"limit_s": MAX_SECONDS + 1}, "limit_s"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(body: Any, field: str) -> None:
    rolling = Rolling()
    async with a_controller(rolling.status, rollout=rolling) as address:
        status, answer = await put(address, "/rollout", json.dumps(body).encode())
    assert (status, answer["field"], rolling.requests) == (400, field, [])
