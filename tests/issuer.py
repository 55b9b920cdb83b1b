"""An issuer of tokens (OpenID Connect) for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from stream2llm.serving.settings.security_options import AuthOptions, OidcOptions, SecurityOptions


class Issuer:
    """Signs tokens, and serves the public keys in a way that a test can count and break."""

    def __init__(self) -> None:
        self.private: dict[str, Any] = {}
        self.num_reads = 0
        self.is_down = False
        self.rotate("first")

    def rotate(self, key_id: str) -> None:
        self.private[key_id] = rsa.generate_private_key(65537, 2048)

    def read(self, _source: str = "") -> bytes:
        self.num_reads += 1
        if self.is_down:
            raise OSError("no answer")
        return self.document()

    def document(self) -> bytes:
        keys = [
            {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": key_id}
            for key_id, key in self.private.items()
        ]
        return json.dumps({"keys": keys}).encode()

    def token(self, key_id: str | None = "first", algorithm: str = "RS256", **changes: Any) -> str:
        """A good one but for the changes; None leaves a claim out."""
        now = datetime.now(UTC)
        claims = {
            "iss": "https://issuer",
            "aud": ["other", "stream2llm"],
            "exp": now + timedelta(minutes=1),
            "tenant": "acme",
            "scope": "openid s2l:session s2l:read session",
            **changes,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        headers = {} if key_id is None else {"kid": key_id}
        return jwt.encode(claims, self.private[key_id or "first"], algorithm, headers)


@contextmanager
def served(issuer: Issuer) -> Iterator[str]:
    """The address of the issuer's keys, over HTTP on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(issuer.read())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/keys"
    server.shutdown()
    thread.join()
    server.server_close()


def security_of(jwks: str) -> SecurityOptions:
    """A configuration that takes the issuer's tokens."""
    oidc = OidcOptions(
        issuer="https://issuer", audience="stream2llm", jwks=jwks, scope_prefix="s2l:"
    )
    return SecurityOptions(auth=AuthOptions(oidc=oidc))
