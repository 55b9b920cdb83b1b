"""`stream2llm status`: what is shown, from whom it comes, and what is said when one is gone."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from stream2llm.api.events import RecoveryInfo
from stream2llm.cli.status import Found, Row, find, rows, show
from tests.command_lines import cli
from tests.fake_router import FakeRouter

NOBODY = "127.0.0.1:1"


def a_worker(name: str, *, ready: bool = True) -> dict[str, Any]:
    role = name.partition("-")[0]
    load = {"num_sessions": 3, "num_kv_blocks_held": 25, "num_kv_blocks": 100}
    return {"worker_id": name, "role": role, "ready": ready, "metrics_address": "h:1", **load}


def a_replica(name: str, phase: str = "ready", **fields: Any) -> dict[str, Any]:
    role = name.partition("-")[0]
    known = {"restarts": 0, "reason": "", "last_error": "", "address": None, "status": None}
    return {"name": name, "role": role, "phase": phase, **known, **fields}


def found(workers: list[Any], replicas: list[Any] | None) -> Found:
    router = {"version": "1", "router_id": "router-0", "sessions_by_phase": {}, "workers": workers}
    router |= {"restarts_by_cause": {}, "recovery": asdict(RecoveryInfo())}
    controller = None if replicas is None else {"replicas": replicas}
    return Found(router, controller)


def test_what_no_router_sees_is_shown_with_the_reason() -> None:
    replicas = [
        a_replica("prefill-0"),
        a_replica("prefill-1", "given_up", restarts=2, reason="ValueError: no such dtype"),
        a_replica("decode-0", "starting", restarts=1, last_error="died: killed"),
    ]
    shown = rows(found([a_worker("prefill-0")], replicas))
    assert shown == [
        Row("prefill-0", "prefill", "ready", "0", "3", "25 of 100", "25%", "h:1"),
        Row("prefill-1", "prefill", "given up", "2", why="ValueError: no such dtype"),
        Row("decode-0", "decode", "starting", "1", why="died: killed"),
    ]


def test_a_worker_that_waits_for_room_says_for_what() -> None:
    why = "no node has room for it: it needs 1 GPU (10.0.0.1: 0 of 1 GPU free)"
    console = Console(width=200, record=True, file=io.StringIO())
    show(found([], [a_replica("prefill-0", "waiting_for_room", reason=why)]), console)
    text = console.export_text()
    assert "waiting for room" in text
    assert f"prefill-0: {why}" in text


def test_names_and_states_are_whole_on_a_narrow_terminal() -> None:
    replicas = [a_replica("prefill-10", "given_up", restarts=12, reason="ValueError: no")]
    console = Console(width=80, record=True, file=io.StringIO())
    show(found([a_worker("prefill-10", ready=False)], replicas), console)
    text = console.export_text()
    assert "prefill-10  prefill  given up        12         3  25 of 100     25%  h:1" in text
    assert "prefill-10: ValueError: no" in text


def a_tenant(name: str, num_sessions: int, weight: float = 1.0) -> dict[str, Any]:
    used = {"num_sessions": num_sessions, "held_tokens": 1000, "computed_tokens": 70_000}
    return {"name": name, **used, "num_refused": 2, "weight": weight, "priority": 1}


def shown(what: Found) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    show(what, console)
    return console.export_text()


def test_tenants_of_the_configuration_are_shown_with_their_use_of_all_routers() -> None:
    here = [a_tenant("acme", 5, weight=4.0), a_tenant("(others)", 1)]
    there = [a_tenant("acme", 7, weight=4.0), a_tenant("(others)", 0)]
    replicas = [
        a_replica(name, status={"tenants": tenants})
        for name, tenants in (("router-0", here), ("router-1", there))
    ]
    text = shown(found([], [*replicas, a_replica("prefill-0", status={"num_sessions": 1})]))
    assert "acme            12         2000           140000        4       4         1" in text
    assert "(others)" in text


def test_without_a_controller_the_routers_own_figures_are_shown() -> None:
    alone = found([], None)
    alone.router["tenants"] = [a_tenant("acme", 5), a_tenant("(others)", 0)]
    assert "acme             5         1000            70000" in shown(alone)


def test_without_tenants_in_the_configuration_none_are_shown() -> None:
    alone = found([], None)
    alone.router["tenants"] = [a_tenant("(others)", 3)]
    assert "(others)" not in shown(alone)


def test_a_controller_that_was_started_again_says_so() -> None:
    cluster = found([], [a_replica("prefill-0")])
    assert "controller" not in shown(cluster)
    cluster.controller["controller_restarts"] = 2
    assert "controller: started again 2 times" in shown(cluster)


def test_a_worker_that_the_router_cannot_use_is_not_called_ready() -> None:
    (row,) = rows(found([a_worker("decode-0", ready=False)], [a_replica("decode-0")]))
    assert row.state == "ready, not usable by the router"


def test_without_a_controller_the_routers_workers_are_shown() -> None:
    shown = rows(found([a_worker("prefill-0"), a_worker("decode-0", ready=False)], None))
    assert [(r.name, r.state, r.restarts) for r in shown] == [
        ("decode-0", "not ready", ""),
        ("prefill-0", "ready", ""),
    ]


@contextmanager
def a_controller(answer: bytes) -> Iterator[str]:
    """Something that answers every GET with these bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def invoke(*args: str, address: str = NOBODY, controller: str = NOBODY) -> Result:
    env = {"STREAM2LLM_ADDRESS": address, "STREAM2LLM_CONTROLLER": controller}
    return cli("status", *args, env=env)


def test_both_addresses_come_from_the_environment(threaded_router: FakeRouter) -> None:
    answer = {"replicas": [a_replica("prefill-1", "dead", reason="killed\x1b[2K\nforged")]}
    with a_controller(json.dumps(answer).encode()) as controller:
        result = invoke(address=threaded_router.fake.address, controller=controller)
    assert result.exit_code == 0, result.output
    assert "prefill-1" in result.stdout
    assert "prefill-1: killed\\u001b[2K\\nforged" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_dead_router_leaves_what_the_controller_knows() -> None:
    answer = {"replicas": [a_replica("router-0", "dead", reason="its process has died")]}
    with a_controller(json.dumps(answer).encode()) as controller:
        result = invoke(controller=controller)
    assert result.exit_code == 4
    assert "router-0: its process has died" in result.stdout
    assert f"no answer from a router at {NOBODY}" in result.stderr


def test_json_has_both_and_says_what_is_missing(threaded_router: FakeRouter) -> None:
    result = invoke("--json", address=threaded_router.fake.address)
    shown = json.loads(result.stdout)
    assert result.exit_code == 4
    assert shown["controller"] is None
    assert "no answer from a controller" in shown["missing"]
    assert shown["workers"]


@pytest.mark.parametrize("answer", [b"\xff", b"[]", b"<html>", b"", b"{}"])
def test_something_else_at_the_controllers_address_is_one_line(
    answer: bytes, threaded_router: FakeRouter
) -> None:
    with a_controller(answer) as controller:
        result = invoke(address=threaded_router.fake.address, controller=controller)
    assert result.exit_code == 4, result.output
    assert len(result.stderr.splitlines()) == 1


def test_policy_says_the_same_of_something_else() -> None:
    with a_controller(b"{}") as controller:
        result = cli("policy", "--controller", controller)
    assert (result.exit_code, result.stdout) == (4, "")
    assert f"the server at {controller} is not a controller" in result.stderr


def test_nobody_at_all_is_one_line_about_the_router() -> None:
    result = invoke()
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith(f"error: no answer from a router at {NOBODY}")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "address", ["", "nonsense:://", "a b", "127.0.0.1:99999", "http://127.0.0.1:50051", "127.0.0.1"]
)
def test_an_address_that_is_none_is_no_traceback(address: str) -> None:
    result = cli("status", "--address", address, "--controller", address, "--timeout", "0.5")
    assert result.exit_code == 3, result.output
    assert len(result.stderr.splitlines()) == 1
    assert "try again" not in result.stderr


def test_a_controller_on_another_machines_loopback_is_not_asked_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = {"controller_address": "127.0.0.1:8360"}
    monkeypatch.setattr("stream2llm.cli.status._ask_router", lambda *_: told)
    answer = find("10.0.0.1:50051", None, 1.0)
    assert answer.controller is None
    assert "give --controller" in answer.missing


def test_restarts_of_sessions_are_shown_where_there_were_some() -> None:
    what = found([], None)
    assert "another worker" not in shown(what)
    what.router["restarts_by_cause"] = {"prefill_lost": 30, "kv_lost": 1}
    assert "another worker since the start: 1 kv_lost, 30 prefill_lost" in shown(what)
    assert "token" not in shown(what)
    cost = RecoveryInfo(recomputed_tokens=5000, num_recovered=4, total_s=6.0, longest_s=3.5)
    what.router["recovery"] = asdict(cost)
    assert "tokens computed again for that: 5000" in shown(what)
    assert "to the next token: 1.50 s on average, 3.50 s at most" in shown(what)
