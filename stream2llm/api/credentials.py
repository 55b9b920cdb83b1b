"""How a client reaches a cluster: encrypted or not, and with which API key or token."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from stream2llm.api import arguments
from stream2llm.api.call_metadata import Metadata, bearer
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.loopback import host_of, is_loopback
from stream2llm.api.tls import ClientTls

API_KEY_VARIABLE = "STREAM2LLM_API_KEY"
# A token, or what returns the one to send now.
Token = str | Callable[[], str]
# What may stand in a header.
_SENDABLE = re.compile(r"[\x21-\x7e]*")


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """The API key or token that a client sends with every call; an empty `secret` sends none."""

    secret: Token = field(default="", repr=False)

    def __bool__(self) -> bool:
        return callable(self.secret) or bool(self.secret)

    def metadata(self) -> Metadata:
        """For one call; raises InvalidRequestError for a token that cannot be sent."""
        secret = self.secret() if callable(self.secret) else self.secret
        return bearer(_sendable(secret, "token"))

    def headers(self) -> dict[str, str]:
        """The same for HTTP."""
        return {name.title(): value for name, value in self.metadata()}

    def require_encryption(self, address: str, *, is_encrypted: bool) -> None:
        """Raises InvalidRequestError where others could read what is sent to "host:port"."""
        if self and not is_encrypted and not _is_local(address):
            raise InvalidRequestError(
                f"the API key or token would be sent to {address} in plain text: use TLS (tls=,"
                f" --tls-ca), or leave it away (also {API_KEY_VARIABLE})",
                reason="PLAINTEXT_REFUSED",
                field="tls",
            )


def _is_local(address: str) -> bool:
    """Whether all that a target of gRPC stands for is this machine."""
    scheme, _, rest = address.partition("://")
    authority = rest.partition("/")[0] if scheme == "dns" else ""
    several = address.rpartition("/")[2].split(",")
    return not authority and all(is_loopback(host_of(each)) for each in several)


@dataclass(frozen=True, slots=True)
class ClientSecurity:
    """What a client needs beside an address, for routers and for servers of HTTP."""

    # None: plain text.
    tls: ClientTls | None = None
    credentials: ClientCredentials = ClientCredentials()

    @property
    def scheme(self) -> str:
        """That of an HTTP server whose address is HOST:PORT."""
        return "http" if self.tls is None else "https"


PLAIN = ClientSecurity()


def credentials_of(
    api_key: str | None, token: Token | None, from_environment: str | None = None
) -> ClientCredentials:
    """At most one of the first two; without both what the environment has."""
    if api_key is not None and token is not None:
        raise arguments.refused("token", "a token", "None where `api_key` is given")
    if callable(token):
        return ClientCredentials(token)
    if api_key is not None:
        return ClientCredentials(_sendable(api_key, "api_key"))
    if token is not None:
        return ClientCredentials(_sendable(token, "token"))
    return ClientCredentials(_sendable(from_environment or "", API_KEY_VARIABLE))


def _sendable(secret: object, name: str) -> str:
    """Says nothing of the secret itself in its error."""
    if not isinstance(secret, str) or not _SENDABLE.fullmatch(secret.strip()):
        raise InvalidRequestError(
            f"{name} must be text of printable ASCII characters without spaces",
            reason="BAD_ARGUMENT",
            field=name,
        )
    return secret.strip()
