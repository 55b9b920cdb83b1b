"""The file of API keys, and its editor."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stream2llm.api.errors import InvalidRequestError, NotFoundError
from stream2llm.security.api_keys import KeyFile, hash_of, read_entries
from stream2llm.security.key_edit import create_key, revoke_key
from stream2llm.security.principal import Principal, Scope

GOOD = {"id": "0" * 12, "sha256": "0" * 64, "tenant": "a", "scopes": ["session"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


def test_a_new_key_is_in_the_file_by_its_hash_alone(path: Path) -> None:
    key = create_key(path, "acme", [Scope.SESSION], "of the web shop")
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert key.split("_", 2)[2] not in text
    assert json.loads(text)["sha256"] == hash_of(key)
    found = KeyFile(path).principal(key)
    assert found == Principal(f"key {key.split('_')[1]}", "acme", frozenset({Scope.SESSION}))


def test_nothing_but_the_whole_key_counts(path: Path) -> None:
    key, other = (create_key(path, "a", [Scope.SESSION]) for _ in range(2))
    file = KeyFile(path)
    swapped = "_".join([*key.split("_", 2)[:2], other.split("_", 2)[2]])
    for wrong in ("", key[:-1], key + "x", key.upper(), f" {key}", swapped, hash_of(key)):
        assert file.principal(wrong) is None


def test_editors_take_turns(path: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda n: create_key(path, f"t{n}", []), range(24)))
    assert len(read_entries(path)) == 24
    path.chmod(0o640)
    assert revoke_key(path, keys[0].split("_")[1]).tenant == "t0"
    assert path.stat().st_mode & 0o777 == 0o640
    assert len(read_entries(path)) == 23
    with pytest.raises(NotFoundError, match="has no key with the id"):
        revoke_key(path, keys[0].split("_")[1])
    assert [each.name for each in tmp_path.iterdir()] == ["keys.jsonl"]


@pytest.mark.parametrize("tenant", ["", "a b", "-a", "x" * 129, 'a"', "a\n"])
def test_a_tenant_that_is_no_name_is_refused(tenant: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="tenant needs 1 to 128"):
        create_key(tmp_path / "keys.jsonl", tenant, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("s2l_secret", "not JSON"),
        ("[1]", "no object"),
        (json.dumps({**GOOD, "key": "s2l_secret"}), r"unknown \['key'\]"),
        (json.dumps({"id": "0" * 12}), "'sha256' is missing"),
        (json.dumps({**GOOD, "id": "secret"}), "12.*hexadecimal"),
        (json.dumps({**GOOD, "tenant": "a secret"}), "`tenant` needs"),
        (json.dumps({**GOOD, "scopes": ["root"]}), "'root' is not a valid Scope"),
        (json.dumps({**GOOD, "scopes": "session"}), "not a list"),
        (json.dumps(GOOD), "was there before"),
    ],
)
def test_a_line_that_is_no_key_is_named_by_its_number(
    line: str, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(InvalidRequestError, match=f"keys.jsonl: line 3: .*{problem}") as caught:
        KeyFile(path)
    assert caught.value.reason == "BAD_KEYS_FILE"
    assert "secret" not in caught.value.message.replace("['key']", "")


def test_a_file_that_goes_away_changes_nothing_and_is_counted(path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        KeyFile(path)
    key = create_key(path, "a", [])
    file = KeyFile(path)
    path.unlink()
    assert file.principal(key)
    assert file.num_failed_reads == 1


def test_an_edit_keeps_who_may_read_the_file(path: Path) -> None:
    key = create_key(path, "acme", [Scope.SESSION])
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    revoke_key(path, key.split("_")[1])
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid, before.st_gid, before.st_mode,
    )  # fmt: skip


@pytest.mark.parametrize("note", ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb", "\ud800", "ü"])
def test_a_note_of_any_characters_is_one_line(path: Path, note: str, tmp_path: Path) -> None:
    key = create_key(path, "acme", [Scope.SESSION], note)
    (entry,) = read_entries(path).values()
    assert entry.note == note
    assert KeyFile(path).principal(key) is not None
