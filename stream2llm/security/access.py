"""Decides who calls: from the credentials of one call to a Principal, for gRPC and HTTP alike.

Credentials are `authorization: Bearer ...` with an API key or a token (JWT), or the tenant
header of a trusted proxy. An error never repeats them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stream2llm.api.errors import NotPermittedError, UnauthenticatedError
from stream2llm.security.api_keys import KEY_PREFIX, KeyFile
from stream2llm.security.principal import TENANT_FORM, Principal, Scope, is_tenant
from stream2llm.security.tokens import TokenVerifier

AUTHORIZATION = "authorization"
_BEARER = "bearer "
# As a peer of a trusted proxy: every process of this machine.
LOOPBACK = "loopback"
_HOW = (
    "give an API key or a token (api_key= or token= of clients,"
    " --api-key-file of commands, STREAM2LLM_API_KEY of both)"
)


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection."""

    is_loopback: bool = False
    # In its verified certificate.
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class TrustedProxy:
    """A proxy that authenticates clients, and says in a header whose they are."""

    # In lower case.
    tenant_header: str
    # Names in certificates, or LOOPBACK.
    peers: frozenset[str]
    scopes: frozenset[Scope]

    def trusts(self, peer: Peer) -> bool:
        """Whether the header counts from this peer."""
        named = bool((self.peers - {LOOPBACK}) & peer.names)
        return named or (peer.is_loopback and LOOPBACK in self.peers)


@dataclass(frozen=True, slots=True)
class Presented:
    """What a call brings."""

    # Each value of the header.
    authorization: Sequence[str] = ()
    tenant: Sequence[str] = ()
    # Asked for only where the tenant's header is there.
    peer: Callable[[], Peer] = field(default=Peer)


class Access:
    """What counts as credentials for all listeners of a process."""

    def __init__(
        self,
        keys: KeyFile | None = None,
        tokens: TokenVerifier | None = None,
        proxy: TrustedProxy | None = None,
    ) -> None:
        self.keys = keys
        self.proxy = proxy
        self._tokens = tokens

    @property
    def tenant_header(self) -> str:
        """The header of a trusted proxy, in lower case; empty if none is trusted."""
        return self.proxy.tenant_header if self.proxy else ""

    def may_wait(self, presented: Presented) -> bool:
        """Whether `admit` may have to fetch an issuer's keys, which takes a while."""
        given = _bearer_in(presented.authorization)
        is_token = given is not None and not given.startswith(KEY_PREFIX)
        return is_token and self._tokens is not None and self._tokens.may_wait(given or "")

    def admit(self, presented: Presented, scope: Scope) -> Principal:
        """Returns the caller, who has the scope.

        Raises UnauthenticatedError, NotPermittedError, or UnavailableError when an issuer
        cannot be asked for its keys.
        """
        principal = self._principal(presented)
        if not principal.may(scope):
            has = ", ".join(sorted(principal.scopes)) or "none"
            raise NotPermittedError(
                f"{principal.name} lacks the scope {scope!s}, which this needs; it has {has}"
            )
        return principal

    def _principal(self, presented: Presented) -> Principal:
        if presented.tenant and self.proxy is not None and self.proxy.trusts(presented.peer()):
            return _of_proxy(self.proxy, presented.tenant)
        given = _bearer_in(presented.authorization)
        if given is None:
            raise UnauthenticatedError(f"this needs credentials: {_HOW}")
        found = self._of_key(given) if given.startswith(KEY_PREFIX) else self._of_token(given)
        if found is None:
            raise UnauthenticatedError(
                "the credentials are not valid here", reason="BAD_CREDENTIALS"
            )
        return found

    def _of_key(self, key: str) -> Principal | None:
        return self.keys.principal(key) if self.keys else None

    def _of_token(self, token: str) -> Principal | None:
        return self._tokens.principal(token) if self._tokens else None


def _of_proxy(proxy: TrustedProxy, values: Sequence[str]) -> Principal:
    if len(values) != 1 or not is_tenant(values[0]):
        raise UnauthenticatedError(
            f"{proxy.tenant_header} must be there once, with {TENANT_FORM}", reason="NO_TENANT"
        )
    return Principal("the proxy", values[0], proxy.scopes)


def _bearer_in(values: Sequence[str]) -> str | None:
    """What stands behind `Bearer`; None without the header. Raises UnauthenticatedError."""
    if not values:
        return None
    scheme, given = values[0][: len(_BEARER)], values[0][len(_BEARER) :].strip()
    if len(values) > 1 or scheme.lower() != _BEARER or not given:
        raise UnauthenticatedError(
            f"{AUTHORIZATION} must be there once, as `Bearer` and a key or token",
            reason="BAD_CREDENTIALS",
        )
    return given
