"""`stream2llm workers retry` and the controller's /retry."""

from __future__ import annotations

import asyncio

import pytest
from typer.testing import Result

from stream2llm.api.errors import InvalidRequestError
from tests.command_lines import check_failed, cli
from tests.fakes.controller import a_controller, put


class GivenUp:
    """Workers that wait to be started again."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def retry(self, name: str | None) -> list[str]:
        if name is None:
            return self.names
        if name not in self.names:
            raise InvalidRequestError(f"nothing is called {name!r}", field="name")
        return [name]


async def command(*args: str) -> Result:
    return await asyncio.to_thread(cli, "workers", "retry", *args)


async def test_the_command_starts_one_or_all_and_says_which() -> None:
    async with a_controller(retry=GivenUp("prefill-0", "decode-0").retry) as address:
        one = await command("decode-0", "--controller", address)
        every = await command("--controller", address)
    async with a_controller(retry=GivenUp().retry) as address:
        none = await command("--controller", address)
    assert (one.exit_code, one.stdout) == (0, "decode-0\n")
    assert (every.exit_code, every.stdout) == (0, "prefill-0\ndecode-0\n")
    assert (none.exit_code, none.stdout) == (0, "nothing waits to be started again\n")


async def test_the_command_names_what_is_wrong() -> None:
    async with a_controller(retry=GivenUp("decode-0").retry) as address:
        unknown = await command("decode-7", "--controller", address)
    silent = await command("--controller", address)
    check_failed(unknown, 3, "nothing is called 'decode-7'")
    check_failed(silent, 4, f"no answer from a controller at {address}")


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"1", b'{"name": 1}', b"[" * 10_000])
async def test_a_body_that_is_none_is_a_bad_request(body: bytes) -> None:
    async with a_controller(retry=GivenUp("decode-0").retry) as address:
        status, told = await put(address, "/retry", body)
    assert (status, told["field"]) == (400, "name")
