"""`stream2llm keys`, and the API key of the other commands."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from stream2llm.api.credentials import ClientCredentials, ClientSecurity
from stream2llm.api.errors import InvalidRequestError, NotPermittedError, UnauthenticatedError
from stream2llm.cli.addresses import Controller
from stream2llm.cli.security_options import chosen_key
from stream2llm.security.api_keys import KeyFile
from stream2llm.security.principal import Scope
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.http.own_http import open_url
from stream2llm.serving.system.clock import SystemClock
from tests.command_lines import cli
from tests.credentials import Keys
from tests.fakes.controller import a_controller


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and everything that was printed."""
    result = cli("keys", *arguments)
    return result.exit_code, result.output


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    code, made = run("create", str(path), "--tenant", "acme", "--scope", "read", "--note", "shop")
    key, key_id = made.strip(), made.split("_")[1]
    assert code == 0
    principal = KeyFile(path).principal(key)
    assert (principal.tenant, principal.scopes) == ("acme", {Scope.READ})
    run("create", str(path))
    code, listed = run("list", str(path))
    first, second = listed.splitlines()
    assert first.startswith(f"{key_id}  acme  read  20")
    assert first.endswith("  shop")
    assert "  default  session  " in second
    assert key.split("_", 2)[2] not in listed
    assert run("revoke", str(path), key_id)[0] == 0
    assert KeyFile(path).principal(key) is None
    code, said = run("revoke", str(path), key_id)
    assert (code, "no key with the id" in said) == (3, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "nowhere.jsonl"),
        ("create", "no/folder/keys.jsonl"),
        ("create", "k", "--tenant", "a b"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_3(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = run(*arguments)
    assert code == 3
    assert said.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_commands_take_a_key_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    path.write_text("of-the-file\n")
    assert not chosen_key(None)
    monkeypatch.setenv("STREAM2LLM_API_KEY", "of-the-environment")
    assert chosen_key(None).secret == "of-the-environment"
    assert chosen_key(path).secret == "of-the-file"
    assert "of-the-file" not in repr(chosen_key(path))
    with pytest.raises(InvalidRequestError, match="No such file"):
        chosen_key(tmp_path / "nothing")
    path.write_text("two words")
    with pytest.raises(InvalidRequestError, match="printable ASCII"):
        chosen_key(path)


async def test_a_controller_s_refusal_says_what_is_missing(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    guard = Guards(keys.security().auth, SystemClock()).of("controller")

    async def retry(address: str, key: str) -> list[str]:
        path = tmp_path / "key"
        path.write_text(key)
        asked = Controller(address, ClientSecurity(credentials=chosen_key(path)))
        answer = await asyncio.to_thread(asked.ask, "/retry", "retried", {})
        retried: list[str] = answer["retried"]
        return retried

    async with a_controller(retry=lambda _: ["x"], guard=guard) as address:
        assert await retry(address, keys.create("a", Scope.OPERATOR)) == ["x"]
        with pytest.raises(UnauthenticatedError, match="needs credentials"):
            await retry(address, "")
        with pytest.raises(NotPermittedError, match="lacks the scope operator"):
            await retry(address, keys.create("a", Scope.READ))


def test_http_never_carries_a_key_to_another_machine_in_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("secret")
    for host in ("10.0.0.1:80", "router.example:80", "[2001:db8::1]:80"):
        with pytest.raises(InvalidRequestError, match="in plain text") as caught:
            open_url(f"http://{host}/status", 1.0, ClientSecurity(credentials=chosen_key(path)))
        assert caught.value.reason == "PLAINTEXT_REFUSED"
        assert json.dumps("secret") not in caught.value.message


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        ("127.0.0.1:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("ipv6:[::1]:1,[::1]:2", True),
        ("ipv6:[::1]:1,[2001:db8::1]:1", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("dns:///localhost:1", True),
        # Another resolver says what localhost is.
        ("dns://10.0.0.1/localhost:1", False),
    ],
)
def test_every_machine_that_a_target_stands_for_counts(address: str, is_local: bool) -> None:
    sent = ClientCredentials("secret")
    if is_local:
        sent.require_encryption(address, is_encrypted=False)
        return
    with pytest.raises(InvalidRequestError, match="in plain text"):
        sent.require_encryption(address, is_encrypted=False)
