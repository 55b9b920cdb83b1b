"""Builds what admits callers from the section `security` of the configuration."""

from __future__ import annotations

from stream2llm.security.access import Access, TrustedProxy
from stream2llm.security.api_keys import KeyFile
from stream2llm.security.guard import AccessMetrics, Guard, Listener
from stream2llm.security.issuer_keys import IssuerKeys
from stream2llm.security.tokens import TokenRules, TokenVerifier
from stream2llm.serving.settings.security_options import AuthOptions, OidcOptions
from stream2llm.serving.system.clock import Clock


class Guards:
    """Admits callers of all listeners of one process; register `metrics` where it is scraped."""

    def __init__(self, auth: AuthOptions, clock: Clock) -> None:
        """Reads this node's file of keys; raises InvalidRequestError if it cannot be used."""
        self._access = _access(auth, clock) if auth.is_on else None
        self._clock = clock
        self.metrics = AccessMetrics(self._access.keys if self._access else None)

    def of(self, listener: Listener) -> Guard:
        """The guard of one listener."""
        return Guard(listener, self._access, self.metrics, self._clock.monotonic_s)


def _access(auth: AuthOptions, clock: Clock) -> Access:
    return Access(
        None if auth.keys_file is None else KeyFile(auth.keys_file),
        None if auth.oidc is None else _tokens(auth.oidc, clock),
        None
        if auth.proxy is None
        else TrustedProxy(
            auth.proxy.tenant_header, frozenset(auth.proxy.peers), frozenset(auth.proxy.scopes)
        ),
    )


def _tokens(oidc: OidcOptions, clock: Clock) -> TokenVerifier:
    rules = TokenRules(
        oidc.issuer,
        oidc.audience,
        oidc.algorithms,
        oidc.leeway_s,
        oidc.tenant_claim,
        oidc.scope_claim,
        oidc.scope_prefix,
    )
    return TokenVerifier(rules, IssuerKeys(oidc.jwks, oidc.refresh_s, clock.monotonic_s))
