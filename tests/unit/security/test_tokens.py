"""Tokens of an OpenID Connect issuer: what counts, what does not, and how its keys are fetched."""

from __future__ import annotations

import json
import threading
import urllib.request
from datetime import UTC, datetime, timedelta
from email.message import Message
from functools import partial
from http.client import BadStatusLine, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import URLError

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from stream2llm.api.errors import UnauthenticatedError, UnavailableError
from stream2llm.security.access import Access, Presented
from stream2llm.security.issuer_keys import (
    LEAST_PAUSE_S,
    RETRY_S,
    IssuerKeys,
    _EncryptedRedirects,
    parse_keys,
)
from stream2llm.security.principal import Principal, Scope
from stream2llm.security.tokens import TokenRules, TokenVerifier
from stream2llm.serving.system.clock import ManualClock
from tests.issuer import Issuer
from tests.refusals import refused

RULES = TokenRules(
    issuer="https://issuer",
    audience="stream2llm",
    algorithms=("RS256", "ES256"),
    leeway_s=5.0,
    tenant_claim="tenant",
    scope_claim="scope",
    scope_prefix="s2l:",
)
REFRESH_S = 300.0


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def verifier(issuer: Issuer, clock: ManualClock) -> TokenVerifier:
    return TokenVerifier(RULES, IssuerKeys("", REFRESH_S, clock.monotonic_s, issuer.read))


def test_a_token_says_tenant_and_scopes(issuer: Issuer, clock: ManualClock) -> None:
    verify = verifier(issuer, clock)
    scopes = frozenset({Scope.SESSION, Scope.READ})
    assert verify.principal(issuer.token()) == Principal("the token", "acme", scopes)
    listed = issuer.token(key_id=None, scope=["s2l:operator", 5, "s2l:root"])
    assert verify.principal(listed).scopes == {Scope.OPERATOR}
    assert verify.principal(issuer.token(scope=None)).scopes == frozenset()


PAST = datetime.now(UTC) - timedelta(minutes=1)
FUTURE = datetime.now(UTC) + timedelta(hours=1)


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"exp": PAST}, "EXPIRED_CREDENTIALS", "has expired"),
        ({"exp": None}, "BAD_CREDENTIALS", "exp, iss or aud is missing"),
        ({"nbf": FUTURE}, "BAD_CREDENTIALS", "not valid yet"),
        ({"iss": "https://other"}, "BAD_CREDENTIALS", "of another issuer"),
        ({"aud": "other"}, "BAD_CREDENTIALS", "for another audience"),
        ({"aud": None}, "BAD_CREDENTIALS", "exp, iss or aud is missing"),
        ({"tenant": None}, "NO_TENANT", "no tenant in its claim 'tenant'"),
        ({"tenant": "a b"}, "NO_TENANT", "no tenant"),
        ({"tenant": ["acme"]}, "NO_TENANT", "no tenant"),
        ({"algorithm": "PS256"}, "BAD_CREDENTIALS", "algorithm is not accepted"),
    ],
)
def test_a_token_that_is_wrong_in_one_thing_does_not_count(
    issuer: Issuer, clock: ManualClock, changes: dict[str, Any], reason: str, says: str
) -> None:
    with refused(says, reason=reason, error=UnauthenticatedError):
        verifier(issuer, clock).principal(issuer.token(**changes))


def test_no_trick_with_algorithms_or_keys_counts(issuer: Issuer, clock: ManualClock) -> None:
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    header, _, signature = issuer.token().split(".")
    public = issuer.private["first"].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = {"kid": "first"}
    stranger = Issuer()
    of_other_kind = ec.generate_private_key(ec.SECP256R1())
    tricks = [
        jwt.encode(claims, None, "none", head),
        # The public key as the secret of a symmetric algorithm.
        jwt.api_jws.PyJWS().encode(
            json.dumps(claims).encode(), jwt.utils.force_bytes(pem.hex()), "HS256", head
        ),
        stranger.token(),
        jwt.encode(claims, of_other_kind, "ES256", head),
        f"{header}.{issuer.token(tenant='other').split('.')[1]}.{signature}",
        issuer.token()[:-8],
        "a.b.c",
        "x" * 20_000,
        "",
    ]
    verify = verifier(issuer, clock)
    for trick in tricks:
        with refused(reason="BAD_CREDENTIALS", error=UnauthenticatedError) as caught:
            verify.principal(trick)
        assert not trick or trick not in caught.value.message


def test_a_new_key_is_fetched_but_not_as_often_as_strangers_like(
    issuer: Issuer, clock: ManualClock
) -> None:
    verify = verifier(issuer, clock)
    assert verify.may_wait(issuer.token())
    verify.principal(issuer.token())
    assert not verify.may_wait(issuer.token())
    issuer.rotate("second")
    new, stranger = issuer.token("second"), Issuer()
    stranger.rotate("third")
    for _ in range(100):
        for token in (new, stranger.token("third")):
            with pytest.raises(UnauthenticatedError, match="none of the issuer's"):
                verify.principal(token)
    assert issuer.num_reads == 1
    clock.advance(LEAST_PAUSE_S)
    assert verify.may_wait(new)
    assert verify.principal(new)
    assert issuer.num_reads == 2
    # A key that the issuer has withdrawn counts until the next fetch.
    del issuer.private["first"]
    clock.advance(REFRESH_S)
    assert verify.principal(new)
    assert issuer.num_reads == 3
    issuer.rotate("first")
    with pytest.raises(UnauthenticatedError):
        verify.principal(issuer.token("first"))


def test_an_issuer_that_is_down_stops_none_of_its_known_keys(
    issuer: Issuer, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    verify = verifier(issuer, clock)
    issuer.is_down = True
    with refused(reason="ISSUER_UNAVAILABLE", error=UnavailableError):
        verify.principal(issuer.token())
    issuer.is_down = False
    with pytest.raises(UnavailableError):  # not asked for every call
        verify.principal(issuer.token())
    clock.advance(RETRY_S)
    verify.principal(issuer.token())
    issuer.is_down = True
    clock.advance(REFRESH_S)
    assert verify.principal(issuer.token())
    assert caplog.text.count("issuer_keys_unavailable") == 2


def test_whose_key_is_known_waits_for_no_fetch(clock: ManualClock) -> None:
    issuer, begun, may_end = Issuer(), threading.Event(), threading.Event()

    def read(_source: str) -> bytes:
        if issuer.num_reads:
            begun.set()
            assert may_end.wait(10)
        return issuer.read()

    keys = IssuerKeys("", REFRESH_S, clock.monotonic_s, read)
    assert keys.key("first")
    clock.advance(REFRESH_S)
    fetching = threading.Thread(target=keys.key, args=("first",))
    fetching.start()
    assert begun.wait(10)
    assert keys.key("first")
    may_end.set()
    fetching.join(10)
    assert issuer.num_reads == 2


def test_only_public_keys_for_signatures_are_taken() -> None:
    good = json.loads(Issuer().document())["keys"][0]
    others = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "symmetric"},
        {**good, "use": "enc", "kid": "encryption"},
        {"kty": "EC", "crv": "unknown", "kid": "curve"},
        {**good, "n": 5, "kid": "broken"},
        "no object",
    ]
    assert list(parse_keys(json.dumps({"keys": [*others, good]}).encode())) == ["first"]
    for document in ({"keys": others}, {}, [], {"keys": None}):
        with pytest.raises(ValueError, match="no public key"):
            parse_keys(json.dumps(document).encode())


def test_keys_come_from_a_file_too(issuer: Issuer, tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(issuer.document())
    tokens = TokenVerifier(RULES, IssuerKeys(str(path), REFRESH_S, clock.monotonic_s))
    presented = Presented([f"bearer {issuer.token()}"])
    assert Access(tokens=tokens).admit(presented, Scope.SESSION).tenant == "acme"


def test_an_issuer_that_speaks_no_http_stops_none_of_its_known_keys(
    issuer: Issuer, clock: ManualClock
) -> None:
    answers: list[bytes | Exception] = [issuer.document(), BadStatusLine("?"), IncompleteRead(b"")]

    def read(_source: str) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    keys = IssuerKeys("https://issuer", 300.0, clock.monotonic_s, read)
    known = next(iter(parse_keys(issuer.document())))
    assert keys.key(known) is not None
    for _ in range(2):
        clock.advance(301)
        assert keys.key(known) is not None
        assert not keys.may_fetch(known)
    assert not answers


def test_a_redirect_leads_to_https_alone() -> None:
    request = urllib.request.Request("https://issuer/jwks")
    follow = partial(_EncryptedRedirects().redirect_request, request, None, 302, "", Message())
    assert follow("https://other/jwks") is not None
    with pytest.raises(URLError, match="not https"):
        follow("http://other/jwks")
