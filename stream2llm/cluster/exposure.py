"""Checks before a start of what other machines can reach.

What is sent there is encrypted, and callers from there need credentials.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.loopback import is_loopback
from stream2llm.cluster.config import ClusterConfig
from stream2llm.security.api_keys import read_entries
from stream2llm.security.certificates import Certificates, read_certificates
from stream2llm.security.self_check import peer_problem
from stream2llm.serving.settings.security_options import SecurityOptions, TlsOptions
from stream2llm.serving.system.clock import Clock


def hosts_of(config: ClusterConfig) -> dict[str, str]:
    """The host that each section of the configuration listens on."""
    gateway = {} if config.gateway is None else {"gateway": config.gateway.host}
    return {
        "controller": config.controller.host,
        "router": config.router.host,
        **gateway,
        **{role: part.host for role, part in config.worker_sections},
    }


def exposed_hosts(config: ClusterConfig) -> dict[str, str]:
    """Those of them that other machines may reach; "auto" is one."""
    return {section: host for section, host in hosts_of(config).items() if not is_loopback(host)}


def check_encryption(config: ClusterConfig) -> None:
    """Nothing listens beyond loopback in plain text, unless that is asked for by name."""
    security = config.security
    if security.tls is not None or security.plaintext_beyond_loopback:
        return
    for section, host in exposed_hosts(config).items():
        raise InvalidRequestError(
            f"{section}.host {host} is reached from other machines, and without security.tls"
            " any machine on the way can read and change what is sent: give security.tls"
            " (`stream2llm certs` makes the files), or set"
            " security.plaintext_beyond_loopback to true where the network is trusted",
            reason="PLAINTEXT_REFUSED",
            field=f"{section}.host",
        )


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """The TLS files of one node, as far as its cluster can use them."""

    # A SHA-256 of the authorities; "" for files that cannot be read.
    authority: str = ""
    # By field of security.tls.
    expiry: tuple[tuple[str, datetime], ...] = ()
    # Fields of security.tls, and what is wrong with each.
    problems: tuple[tuple[str, str], ...] = ()


def look_at_tls_files(tls: TlsOptions, names: tuple[str, ...], now: datetime) -> NodeFiles:
    """Reads this node's files and tries them; `names` is how peers reach its listeners."""
    try:
        found = read_certificates(tls.files)
    except InvalidRequestError as error:
        return NodeFiles(problems=((error.field or "security.tls", error.message),))
    problems = tuple(_problems(tls, found, names, now))
    return NodeFiles(sha256(found.ca).hexdigest(), tuple(found.expiry.items()), problems)


def _problems(
    tls: TlsOptions, found: Certificates, names: tuple[str, ...], now: datetime
) -> Iterator[tuple[str, str]]:
    expired = [name for name, ends in found.expiry.items() if ends <= now]
    for name in expired:
        field = f"security.tls.{name}"
        yield field, f"{field}: {tls.files.named()[name]} expired at {found.expiry[name]:%Y-%m-%d}"
    if expired:
        return
    for name in (tls.peer_name,) if tls.peer_name else names:
        if problem := peer_problem(found, name):
            field = "security.tls.certificate"
            yield (
                field,
                f"{field}: {tls.certificate} is refused by other parts of the cluster that connect"
                f" to {name} and have {tls.ca}: {problem}",
            )


def names_here(config: ClusterConfig, address: str) -> tuple[str, ...]:
    """How peers reach what listens on the node with this address."""
    hosts = hosts_of(config).values()
    return tuple(dict.fromkeys(address if host == "auto" else host for host in hosts))


def check_tls_files(config: ClusterConfig, address: str, clock: Clock) -> None:
    """The certificates of this machine, at `address`, can be used, and have not expired."""
    tls = config.security.tls
    if tls is None:
        return
    now = datetime.fromtimestamp(clock.wall_s(), UTC)
    for field, problem in look_at_tls_files(tls, names_here(config, address), now).problems:
        raise InvalidRequestError(problem, reason="BAD_TLS_FILE", field=field)


def check_authentication(config: ClusterConfig) -> None:
    """Nothing serves all callers beyond loopback, unless that is asked for by name."""
    if _knows_its_callers(config.security) or config.security.unauthenticated_beyond_loopback:
        return
    for section, host in exposed_hosts(config).items():
        raise InvalidRequestError(
            f"{section}.host {host} is reached from other machines, and without security.auth"
            " any caller there may use and steer the cluster: give security.auth.keys_file"
            " (`stream2llm keys create` makes it), security.auth.oidc or .proxy, or"
            " security.tls.client_ca; or set security.unauthenticated_beyond_loopback to true"
            " where all who reach it may do so",
            reason="UNAUTHENTICATED_REFUSED",
            field=f"{section}.host",
        )


def check_keys_file(config: ClusterConfig) -> None:
    """This machine's file of keys can be used."""
    if config.security.auth.keys_file is not None:
        read_entries(config.security.auth.keys_file)


def _knows_its_callers(security: SecurityOptions) -> bool:
    has_certificates = security.tls is not None and security.tls.client_ca is not None
    return security.auth.is_on or has_certificates
