"""The section `security` of the configuration file, carried as it is to every part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from stream2llm.api.loopback import is_loopback
from stream2llm.security.principal import DEFAULT_TENANT, Scope
from stream2llm.security.tls_files import TlsFiles
from stream2llm.serving.settings.frozen_model import FrozenModel
from stream2llm.serving.settings.tenant_options import TenantsOptions, require_tenant


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("must be an absolute path: every process reads it, on its own node")
    return path


# On every node.
NodeFile = Annotated[Path, AfterValidator(_absolute)]


class TlsOptions(FrozenModel):
    """TLS on every listener and channel. Every node has the files; they are read again when they
    change."""

    certificate: NodeFile
    """PEM file with the certificate that routers, workers and the controller show to clients and
    to each other; certificates of intermediate authorities may follow."""
    key: NodeFile
    """PEM file with its private key, without a password."""
    ca: NodeFile
    """PEM file with the authority of the cluster: its parts accept only certificates that it
    signed from each other. Sign no client's certificate with it: use another one for `client_ca`."""
    client_ca: NodeFile | None = None
    """PEM file with the authority that signs certificates of clients. If set, the routers, the
    controller and the pages of metrics accept only clients with such a certificate. Unset: clients
    need none."""
    peer_name: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Name that the parts of the cluster expect in each other's certificates, for addresses that
    change. Unset: the address that they connect to."""

    @property
    def files(self) -> TlsFiles:
        """The files alone."""
        return TlsFiles(self.certificate, self.key, self.ca, self.client_ca)


# Asymmetric ones alone: with a symmetric one the verifier's key could also sign.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]


class OidcOptions(FrozenModel):
    """Tokens (JWT) of an OpenID Connect issuer."""

    issuer: str = Field(min_length=1)
    """Issuer: the `iss` of every token."""
    audience: str = Field(min_length=1)
    """Audience: must be among the `aud` of every token."""
    jwks: str = Field(min_length=1)
    """Where the issuer's public keys are (JSON Web Key Set): an https:// address, or the absolute
    path of a file on every node. http:// is accepted for loopback hosts."""
    algorithms: tuple[Algorithm, ...] = Field(default=("RS256", "ES256"), min_length=1)
    """Signature algorithms that are accepted, whatever a token says. Symmetric ones are refused."""
    leeway_s: float = Field(default=30.0, ge=0, le=300)
    """Seconds by which clocks may differ."""
    tenant_claim: str = "tenant"
    """Claim with the tenant's name. A token without it is refused."""
    scope_claim: str = "scope"
    """Claim with the scopes: a list, or words separated by spaces."""
    scope_prefix: str = ""
    """What stands before `session`, `read` and `operator` in that claim; others are ignored."""
    refresh_s: float = Field(default=300.0, ge=10)
    """Seconds between two fetches of the keys. An unknown key is asked for at once, but at most
    once a minute."""

    @field_validator("jwks")
    @classmethod
    def _is_safe_source(cls, jwks: str) -> str:
        url = urlsplit(jwks)
        is_local = url.scheme == "http" and is_loopback(url.hostname or "")
        if url.scheme == "https" or is_local or Path(jwks).is_absolute():
            return jwks
        raise ValueError("must be an https:// address (http:// for loopback), or an absolute path")


class ProxyOptions(FrozenModel):
    """A proxy that authenticates clients, and says in a header whose they are."""

    tenant_header: HeaderName
    """Header with the tenant's name, in lower case; `x-tenant`, for instance. The proxy must
    remove what its own clients send under that name."""
    peers: tuple[str, ...] = Field(min_length=1)
    """Peers whose header counts: names in their TLS client certificates (common name or
    alternative name), or `loopback` for every process of this machine. Others' is ignored."""
    scopes: tuple[Scope, ...] = (Scope.SESSION,)
    """What requests with the header may do: `session`, `read`, `operator`."""


class AuthOptions(FrozenModel):
    """Credentials that callers need. Without any of the three kinds, callers need none."""

    keys_file: NodeFile | None = None
    """File of API keys (`stream2llm keys create` writes it), on every node. Read again when it
    changes."""
    oidc: OidcOptions | None = None
    """Tokens of an OpenID Connect issuer."""
    proxy: ProxyOptions | None = None
    """A header of a trusted proxy."""

    @property
    def is_on(self) -> bool:
        """Whether callers need credentials."""
        return not (self.keys_file is None and self.oidc is None and self.proxy is None)


class SecurityOptions(FrozenModel):
    """Who may listen in, and who may connect."""

    tls: TlsOptions | None = None
    """TLS for every listener and channel. Unset: plain text."""
    plaintext_beyond_loopback: bool = False
    """Whether listeners beyond loopback may use plain text, which is refused otherwise: any
    machine on the way can read and change it."""
    auth: AuthOptions = AuthOptions()
    """Credentials that callers of routers, controller and metrics need."""
    unauthenticated_beyond_loopback: bool = False
    """Whether listeners beyond loopback may serve without `auth`, which is refused otherwise:
    any caller who reaches them may use and steer the cluster."""
    tenants: TenantsOptions = TenantsOptions()
    """How tenants rank among each other, and what each may use."""
    shared_prefix_cache: bool | tuple[str, ...] = False
    """Tenants that find each other's KV by equal prefixes: none (`false`), all (`true`), or those
    in a list. Who shares can measure, by the time to the first token, what the others have sent."""

    @field_validator("shared_prefix_cache")
    @classmethod
    def _names_tenants(cls, shared: bool | tuple[str, ...]) -> bool | tuple[str, ...]:
        for name in shared if isinstance(shared, tuple) else ():
            require_tenant(name)
        return shared

    @model_validator(mode="after")
    def _shares_among_tenants(self) -> SecurityOptions:
        if isinstance(self.shared_prefix_cache, tuple) and not self.auth.is_on:
            raise ValueError(
                "shared_prefix_cache names tenants, but without auth there is only one"
            )
        if self.tenants.named and not (self.auth.is_on or self._is_the_one_tenant_named):
            raise ValueError("tenants.named has tenants, but without auth there is only one")
        return self

    @property
    def _is_the_one_tenant_named(self) -> bool:
        return set(self.tenants.named) == {DEFAULT_TENANT}

    def cache_salt(self, tenant: str) -> str:
        """Returns what a tenant's KV is found by, besides its tokens; equal for those who share."""
        shared = self.shared_prefix_cache
        is_shared = tenant in shared if isinstance(shared, tuple) else shared
        return "" if is_shared or not self.auth.is_on else tenant

    @property
    def peer_name(self) -> str:
        """The name in the certificates of peers; empty for that of their address."""
        return (self.tls and self.tls.peer_name) or ""

    @property
    def tls_files(self) -> TlsFiles | None:
        """The files of certificates; None without TLS."""
        return None if self.tls is None else self.tls.files
