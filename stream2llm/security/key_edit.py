"""Edits a file of API keys: adds and removes entries, one editor at a time.

A reader sees the file before or after a change, never in between.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stream2llm.api.errors import InvalidRequestError, NotFoundError
from stream2llm.security.api_keys import KEY_PREFIX, KeyEntry, hash_of, read_entries
from stream2llm.security.principal import TENANT_FORM, Scope, is_tenant

_MODE_OF_NEW_FILES = 0o600


def create_key(
    path: Path, tenant: str, scopes: Iterable[Scope], note: str = "", created: str = ""
) -> str:
    """Adds a key, and returns it: it is not kept, and cannot be shown again."""
    if not is_tenant(tenant):
        raise InvalidRequestError(f"tenant needs {TENANT_FORM}, not {tenant!r}", field="tenant")
    with _locked(path):
        entries = read_entries(path) if path.exists() else {}
        key_id = secrets.token_hex(6)
        key = f"{KEY_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
        entries[key_id] = KeyEntry(key_id, hash_of(key), tenant, frozenset(scopes), note, created)
        _write(path, entries.values())
    return key


def revoke_key(path: Path, key_id: str) -> KeyEntry:
    """Removes a key, and returns what it was; raises NotFoundError."""
    with _locked(path):
        entries = read_entries(path)
        if key_id not in entries:
            raise NotFoundError(f"{path} has no key with the id {key_id!r}", field="id")
        revoked = entries.pop(key_id)
        _write(path, entries.values())
    return revoked


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InvalidRequestError(f"{path.parent}: {error.strerror}", field="file") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, entries: Iterable[KeyEntry]) -> None:
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    text = "".join(f"{entry.line()}\n" for entry in entries)
    try:
        before = path.stat() if path.exists() else None
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE_OF_NEW_FILES)
        with open(descriptor, "w", encoding="utf-8") as file:
            if before is not None:  # its readers can read it still, whichever user edits it
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, before.st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise InvalidRequestError(f"{path}: {error.strerror}", field="file") from error
