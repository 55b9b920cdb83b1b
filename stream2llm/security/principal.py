"""The caller of a request: its tenant, and what it may do."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

DEFAULT_TENANT = "default"
MAX_TENANT_CHARS = 128
# No white space, quotes or control characters: tenants stand in log lines.
_TENANT = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@:/+-]{{0,{MAX_TENANT_CHARS - 1}}}")
TENANT_FORM = (
    f"1 to {MAX_TENANT_CHARS} letters, digits and . _ @ : / + -, of which the first is a letter"
    " or a digit"
)


class Scope(StrEnum):
    """What a caller may do."""

    # Open sessions, and ask for the model's properties.
    SESSION = "session"
    # See status, metrics and service discovery.
    READ = "read"
    # Everything else: change the policy; retry, drain, remove and restart replicas. Includes READ.
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Principal:
    """One caller whose credentials were accepted."""

    # For messages and logs: "key 3fa9...", "a token of ISSUER".
    name: str
    tenant: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether the caller has the scope."""
        is_included = scope is Scope.READ and Scope.OPERATOR in self.scopes
        return scope in self.scopes or is_included


# Every caller, where the operator asks for no credentials.
ANYONE = Principal("anyone", DEFAULT_TENANT, frozenset(Scope))


def is_tenant(name: str) -> bool:
    """Whether a text may be the name of a tenant."""
    return _TENANT.fullmatch(name) is not None


def scopes_of(words: object) -> frozenset[Scope]:
    """The scopes among some words; raises ValueError for one that is none."""
    if not isinstance(words, (list, tuple)):
        raise ValueError(f"not a list of scopes: {words!r}")
    return frozenset(Scope(word) for word in words)


# Without a default: a handler that no guard has passed must fail rather than serve.
_caller: ContextVar[Principal] = ContextVar("caller")


def caller() -> Principal:
    """Returns the caller that a guard has admitted for this task; raises LookupError without."""
    return _caller.get()


def set_caller(principal: Principal) -> None:
    """Sets the caller for this task and for tasks that it starts."""
    _caller.set(principal)
