"""Tokens (JWT) of one OpenID Connect issuer, checked with its public keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from stream2llm.api.errors import UnauthenticatedError
from stream2llm.security.issuer_keys import IssuerKeys
from stream2llm.security.principal import Principal, Scope, is_tenant

MAX_TOKEN_CHARS = 16 * 1024


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Which tokens count, named as in `security.auth.oidc` of the configuration."""

    issuer: str
    audience: str
    # Asymmetric ones alone: with a symmetric one the issuer's public key could sign.
    algorithms: Sequence[str]
    leeway_s: float
    tenant_claim: str
    scope_claim: str
    scope_prefix: str


class TokenVerifier:
    """Checks signature, issuer, audience and times of a token. Any thread may ask it."""

    def __init__(self, rules: TokenRules, keys: IssuerKeys) -> None:
        self._rules = rules
        self._keys = keys

    def may_wait(self, token: str) -> bool:
        """Whether `principal` may fetch the issuer's keys."""
        return self._keys.may_fetch(_key_id_of(token))

    def principal(self, token: str) -> Principal:
        """Returns whose token it is.

        Raises UnauthenticatedError, or UnavailableError when the issuer's keys have never
        been there.
        """
        key = self._keys.key(_key_id_of(token))
        if key is None:
            raise _bad("its key is none of the issuer's")
        return self._principal_of(self._claims(token, key))

    def _claims(self, token: str, key: Any) -> dict[str, Any]:
        rules = self._rules
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(rules.algorithms),
                audience=rules.audience,
                issuer=rules.issuer,
                leeway=rules.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError(
                "the token has expired", reason="EXPIRED_CREDENTIALS"
            ) from None
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            raise _bad(_fault(error)) from None
        return claims

    def _principal_of(self, claims: dict[str, Any]) -> Principal:
        tenant = claims.get(self._rules.tenant_claim)
        if not isinstance(tenant, str) or not is_tenant(tenant):
            raise UnauthenticatedError(
                f"the token has no tenant in its claim {self._rules.tenant_claim!r}",
                reason="NO_TENANT",
            )
        scopes = _scopes_in(claims.get(self._rules.scope_claim), self._rules.scope_prefix)
        return Principal("the token", tenant, scopes)


def _key_id_of(token: str) -> str | None:
    """The header's `kid`; raises UnauthenticatedError for what is no token."""
    if len(token) > MAX_TOKEN_CHARS:
        raise _bad(f"it is longer than {MAX_TOKEN_CHARS} characters")
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError):
        raise UnauthenticatedError(
            "the credentials are not valid here", reason="BAD_CREDENTIALS"
        ) from None
    return key_id if isinstance(key_id, str) else None


def _scopes_in(value: object, prefix: str) -> frozenset[Scope]:
    """Our scopes among those of a claim; others are the issuer's business."""
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list):
        return frozenset()
    named = {f"{prefix}{scope}": scope for scope in Scope}
    return frozenset(named[word] for word in words if isinstance(word, str) and word in named)


def _fault(error: Exception) -> str:
    """What is wrong, in words of ours: the library's may repeat what the token says."""
    faults: dict[type[Exception], str] = {
        jwt.InvalidSignatureError: "its signature is wrong",
        jwt.InvalidAudienceError: "it is for another audience",
        jwt.InvalidIssuerError: "it is of another issuer",
        jwt.InvalidAlgorithmError: "its algorithm is not accepted",
        jwt.ImmatureSignatureError: "it is not valid yet",
        jwt.InvalidIssuedAtError: "it was issued in the future",
        jwt.MissingRequiredClaimError: "exp, iss or aud is missing",
    }
    return next((text for kind, text in faults.items() if isinstance(error, kind)), "it is broken")


def _bad(why: str) -> UnauthenticatedError:
    return UnauthenticatedError(f"the token does not count: {why}", reason="BAD_CREDENTIALS")
