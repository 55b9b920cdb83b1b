"""The controller's HTTP, with malformed and hostile requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from prefill_worker.policy import POLICIES
from stream2llm.cluster.http_body import MAX_BODY_BYTES
from tests.fakes.controller import a_controller

ROUTES = ("/sd", "/metrics", "/status", "/healthz", "/policy", "/nowhere", "/%ff%00")
METHODS = ("GET", "PUT", "POST", "DELETE")
BODIES = {
    "bad UTF-8": b'{"policy": "\xff\xfe"}',
    "not JSON": b"policy=fcfs",
    "cut off": b'{"policy": "fc',
    "nothing": b"",
    "another type": b'["policy"]',
    "a number": b'{"policy": 5}',
    "null": b'{"policy": null}',
    "a surrogate": b'{"policy": "\\ud800"}',
    "a line break": b'{"policy": "a\\nb"}',
    "deep": b"[" * 60_000,
    "a long number": b'{"policy": ' + b"9" * 50_000 + b"}",
    "UTF-16": '{"policy": "fcfs"}'.encode("utf-16"),
    "too long": b" " * (MAX_BODY_BYTES + 1),
    "huge": b"x" * (3 << 20),
}
HEADERS = {
    "plain": "Content-Type: application/json",
    "no such charset": "Content-Type: application/json; charset=no-such",
    "another charset": "Content-Type: text/plain; charset=utf-16",
    "a lie about gzip": "Content-Encoding: gzip",
    "a lie about deflate": "Content-Encoding: deflate",
}


@asynccontextmanager
async def a_server() -> AsyncIterator[tuple[str, int]]:
    async with a_controller(lambda: {"ready": True}) as address:
        host, _, port = address.rpartition(":")
        yield host, int(port)


async def ask(
    place: tuple[str, int], method: str, path: str, header: str, body: bytes
) -> tuple[int, bytes]:
    """(status, body) of the answer, however little of ours the server reads."""
    reader, writer = await asyncio.open_connection(*place)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        async with asyncio.timeout(10):
            answer = await reader.read()
    except ConnectionResetError:
        answer = b""
    finally:
        writer.close()
    status, _, rest = answer.partition(b"\r\n\r\n")
    return int(status.split()[1]), rest


async def test_no_garbage_in_any_body_is_our_fault() -> None:
    async with a_server() as place:
        for name, body in BODIES.items():
            for header in HEADERS.values():
                status, text = await ask(place, "PUT", "/policy", header, body)
                assert status == 400, (name, header, text)
                assert json.loads(text)["error"], (name, header)
        status, _ = await ask(place, "PUT", "/policy", HEADERS["plain"], b'{"policy": "lcas"}')
        assert status == 200


async def test_every_route_and_method_answers_to_garbage() -> None:
    async with a_server() as place:
        for path in ROUTES:
            for method in METHODS:
                status, _ = await ask(place, method, path, HEADERS["a lie about gzip"], b"\xff" * 9)
                assert status < 500, (method, path)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (BODIES["bad UTF-8"], "not UTF-8"),
        (BODIES["not JSON"], "must be JSON like"),
        (BODIES["a number"], "must be a string"),
        (BODIES["too long"], f"longer than {MAX_BODY_BYTES} bytes"),
        (b'{"policy": "lifo"}', f"there are {', '.join(POLICIES)}"),
    ],
)
async def test_a_refusal_says_what_is_wrong(body: bytes, said: str) -> None:
    async with a_server() as place:
        status, text = await ask(place, "PUT", "/policy", HEADERS["plain"], body)
    told: dict[str, Any] = json.loads(text)
    assert (status, set(told)) == (400, {"error", "reason", "field"})
    assert said in told["error"]


async def test_a_wrong_path_or_method_is_json_too() -> None:
    async with a_server() as place:
        assert (await ask(place, "GET", "/nowhere", "A: b", b""))[0] == 404
        status, text = await ask(place, "DELETE", "/policy", "A: b", b"")
    assert status == 405
    assert json.loads(text)["error"] == "Method Not Allowed: DELETE /policy"
