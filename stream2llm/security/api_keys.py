"""API keys: their form, and the file of their hashes, which is read again when it changes.

A key is `s2l_<id>_<secret>`. The file has one JSON object a line: the id, the SHA-256 of
the whole key, the tenant and the scopes. The secret has 256 random bits, which no list of
likely words helps to guess; so a slow hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream2llm.api.errors import InvalidRequestError
from stream2llm.security.principal import TENANT_FORM, Principal, Scope, is_tenant, scopes_of
from stream2llm.security.reloaded import Reloaded

_log = logging.getLogger(__name__)

KEY_PREFIX = "s2l_"
_KEY = re.compile(r"s2l_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_ID = re.compile(r"[0-9a-f]{12}")
_HASH = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"id", "sha256", "tenant", "scopes", "note", "created"}
# Compared with where there is no such key, so that an answer takes as long as with one.
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One line of the file."""

    key_id: str
    sha256: str
    tenant: str
    scopes: frozenset[Scope]
    # Whose key it is, in the operator's words.
    note: str = ""
    # An ISO 8601 date and time, for the operator.
    created: str = ""

    def line(self) -> str:
        """As it stands in the file, without the line's end."""
        fields = {
            "id": self.key_id,
            "sha256": self.sha256,
            "tenant": self.tenant,
            "scopes": sorted(self.scopes),
            "note": self.note,
            "created": self.created,
        }
        return json.dumps(fields)  # ASCII: some characters beyond it end lines, too


def hash_of(key: str) -> str:
    """What the file has of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_entries(lines: Iterable[str], path: Path) -> dict[str, KeyEntry]:
    """The file's entries by id; raises InvalidRequestError that names the line, not its content."""
    entries: dict[str, KeyEntry] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = _entry(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise unusable(path, f"line {number}: {_why(error)}") from None
        if entry.key_id in entries:
            raise unusable(path, f"line {number}: the id {entry.key_id} was there before")
        entries[entry.key_id] = entry
    return entries


def _entry(fields: Any) -> KeyEntry:
    if not isinstance(fields, dict) or (unknown := fields.keys() - _FIELDS):
        raise ValueError(f"unknown {sorted(unknown)}" if isinstance(fields, dict) else "no object")
    if not _ID.fullmatch(fields["id"]) or not _HASH.fullmatch(fields["sha256"]):
        raise ValueError("`id` needs 12, `sha256` 64 hexadecimal digits in lower case")
    if not is_tenant(fields["tenant"]):
        raise ValueError(f"`tenant` needs {TENANT_FORM}")
    scopes = scopes_of(fields["scopes"])
    more = {name: str(fields.get(name, "")) for name in ("note", "created")}
    return KeyEntry(fields["id"], fields["sha256"], fields["tenant"], scopes, **more)


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "not JSON"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def unusable(path: Path, problem: str) -> InvalidRequestError:
    """The error of a file that cannot be used."""
    return InvalidRequestError(
        f"security.auth.keys_file: {path}: {problem}",
        reason="BAD_KEYS_FILE",
        field="security.auth.keys_file",
    )


def read_entries(path: Path) -> dict[str, KeyEntry]:
    """Reads the file; raises InvalidRequestError for one that cannot be used."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise unusable(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise unusable(path, "not UTF-8") from None
    return parse_entries(text.split("\n"), path)


class KeyFile(Reloaded[dict[str, KeyEntry]]):
    """The newest usable entries of the file, by id."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidRequestError when the file cannot be used from the beginning."""
        self.path = path
        super().__init__([path])

    def principal(self, key: str) -> Principal | None:
        """Whose key it is; None if there is no such key."""
        form = _KEY.fullmatch(key)
        entry = self.newest().get(form[1]) if form else None
        expected = entry.sha256 if entry else _NO_HASH
        is_equal = hmac.compare_digest(hash_of(key), expected)
        if entry is None or not is_equal:
            return None
        return Principal(f"key {entry.key_id}", entry.tenant, entry.scopes)

    def _read(self) -> dict[str, KeyEntry]:
        return read_entries(self.path)

    def _log_failure(self, error: InvalidRequestError) -> None:
        _log.error("keys_file_unusable error=%s (keys before stay in force)", error.message)

    def _log_change(self, content: dict[str, KeyEntry]) -> None:
        _log.info("keys_file_read path=%s num_keys=%d", self.path, len(content))
