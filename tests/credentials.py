"""Files of API keys for tests, and calls with and without credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stream2llm.security.key_edit import create_key
from stream2llm.security.principal import Scope
from stream2llm.serving.settings.security_options import AuthOptions, SecurityOptions


class Keys:
    """A file of keys, and what it lets through."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.jsonl"
        self.path.touch(mode=0o600)

    def create(self, tenant: str = "a", *scopes: Scope) -> str:
        return create_key(self.path, tenant, scopes or (Scope.SESSION,))

    def security(self, **more: Any) -> SecurityOptions:
        return SecurityOptions(auth=AuthOptions(keys_file=self.path), **more)


def sent(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata of an RPC."""
    return (("authorization", f"Bearer {key}"),)
