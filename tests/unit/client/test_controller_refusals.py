"""A controller that refuses credentials, or speaks TLS, is not taken for one that is not there."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from typer.testing import Result

from stream2llm.api.credentials import PLAIN, ClientSecurity, credentials_of
from stream2llm.api.errors import (
    InvalidRequestError,
    NotPermittedError,
    Stream2LLMError,
    UnauthenticatedError,
    UnavailableError,
)
from stream2llm.cli import status
from stream2llm.cli.addresses import Controller
from stream2llm.cli.doctor.cluster import check_running
from stream2llm.cli.doctor.facts import Finding, Level, Running
from stream2llm.cli.doctor.remote import find_cluster
from stream2llm.cli.top.command import first_scrape
from stream2llm.cli.top.scrape import Asked
from stream2llm.client import AsyncClient
from stream2llm.security.certificates import CertificateStore
from stream2llm.security.principal import Scope
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.settings.security_options import AuthOptions
from stream2llm.serving.system.clock import SystemClock
from tests.command_lines import cli
from tests.credentials import Keys
from tests.fake_router import FakeRouter
from tests.fakes.controller import a_controller
from tests.tls_files import Authority

NOBODY = "127.0.0.1:1"


def refusing(
    keys: Path | None = None, store: CertificateStore | None = None
) -> AbstractAsyncContextManager[str]:
    guard = Guards(AuthOptions(keys_file=keys), SystemClock()).of("controller")
    return a_controller(lambda: {"replicas": []}, store=store, guard=guard)


async def look(address: str, security: ClientSecurity = PLAIN, *, is_given: bool) -> Running:
    """As `doctor` does; without a given address it is that of the default."""
    return await asyncio.to_thread(
        lambda: find_cluster(address, is_given=is_given, timeout_s=5.0, security=security)
    )


def with_key(key: str) -> ClientSecurity:
    return ClientSecurity(None, credentials_of(key, None))


async def test_doctor_finds_a_controller_that_wants_a_key(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    session = with_key(keys.create("a", Scope.SESSION))
    async with refusing(keys.path) as address:
        for security, word in ((PLAIN, "needs credentials"), (session, "lacks the scope read")):
            running = await look(address, security, is_given=False)
            (finding,) = check_running(running)
            assert (finding.level, running.is_there) == (Level.PROBLEM, True)
            assert word in finding.text
            assert "--api-key-file" in finding.advice


async def test_doctor_finds_a_controller_that_speaks_tls(tmp_path: Path) -> None:
    async with refusing(store=CertificateStore(Authority().files(tmp_path))) as address:
        running = await look(address, is_given=False)
    assert running.is_there
    assert "--tls-ca" in running.problem


@pytest.mark.parametrize("is_given", [True, False])
async def test_doctor_takes_nobody_for_a_problem_only_where_the_address_was_given(
    is_given: bool,
) -> None:
    running = await look(NOBODY, is_given=is_given)
    (finding,) = check_running(running)
    assert (finding.level is Level.PROBLEM, running.is_there) == (is_given, False)
    # What to do is said once.
    assert f"{finding.text} {finding.advice}".count("is the cluster up") == is_given


async def test_doctor_leaves_what_is_no_controller_alone_where_no_address_was_given() -> None:
    server = await asyncio.start_server(answer_404, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        given = await look(f"{host}:{port}", is_given=True)
        default = await look(f"{host}:{port}", is_given=False)
    assert (given.is_there, "is not a controller" in given.problem) == (False, True)
    (finding,) = check_running(default)
    assert finding == Finding(Level.OK, "cluster", finding.text)


async def answer_404(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
    await writer.drain()
    writer.close()


def ask(command: str, address: str, key: str) -> Result:
    env = {"STREAM2LLM_CONTROLLER": address, "STREAM2LLM_API_KEY": key}
    arguments = ["--once", "--interval", "0.05"] if command == "top" else []
    return cli(command, *arguments, env=env)


@pytest.mark.parametrize("command", ["top", "policy"])
async def test_commands_end_with_the_refusal_of_the_controller(
    command: str, tmp_path: Path
) -> None:
    keys = Keys(tmp_path)
    session = keys.create("a", Scope.SESSION)
    async with refusing(keys.path) as address:
        without = await asyncio.to_thread(ask, command, address, "")
        lacks = await asyncio.to_thread(ask, command, address, session)
    assert (without.exit_code, lacks.exit_code) == (3, 3)
    assert "--api-key-file" in without.stderr
    assert "[NO_CREDENTIALS]" in without.stderr
    assert "[NOT_PERMITTED]" in lacks.stderr
    assert "try again" not in without.stderr + lacks.stderr


async def test_top_waits_for_a_controller_that_is_not_there_but_not_for_a_key(
    tmp_path: Path,
) -> None:
    def begin(address: str) -> Stream2LLMError | None:
        asked = Asked(address, 5.0, SystemClock(), PLAIN)
        return first_scrape(asked, is_only=False).controller_error

    async with refusing(Keys(tmp_path).path) as address:
        with pytest.raises(UnauthenticatedError):
            await asyncio.to_thread(begin, address)
    assert (await asyncio.to_thread(begin, NOBODY)).reason == "NO_ANSWER"


async def test_status_ends_with_what_the_controller_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that lets everyone in, beside a controller that does not."""
    monkeypatch.setattr(status, "_ask_router", lambda *_: {"controller_address": ""})
    keys = Keys(tmp_path)
    security = with_key(keys.create("a", Scope.SESSION))
    async with refusing(keys.path) as address:
        found = await asyncio.to_thread(status.find, NOBODY, address, 5.0, security)
    error = status.incomplete(found)
    assert isinstance(error, NotPermittedError)
    assert "not shown" in error.message


# -- one listener's address where another one's is meant ----------------------------------


async def test_a_controller_where_a_router_is_meant_is_named() -> None:
    async with refusing() as address:
        with pytest.raises(UnavailableError, match="is it the controller"):
            await asyncio.to_thread(status.find, address, NOBODY, 5.0)
        async with AsyncClient(address) as client:
            with pytest.raises(UnavailableError, match="is it the controller"):
                await client.model_info()


async def test_a_router_where_a_controller_is_meant_is_named() -> None:
    async with FakeRouter() as router:
        with pytest.raises(
            UnavailableError, match=r"is not a controller.*is it a router"
        ) as caught:
            await asyncio.to_thread(Controller(router.address).ask, "/status", "replicas")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8360", "127.0.0.1", "h:80/x", "[::1]"])
def test_what_is_no_address_of_a_controller_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequestError, match='must be "host:port"'):
        Controller(address).ask("/status", "replicas")
