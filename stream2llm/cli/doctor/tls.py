"""Checks of certificates. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

from stream2llm.cli.doctor.facts import Finding, Level, Machine

# Time to have a certificate signed; the alert CertificateExpires is later.
MIN_DAYS_LEFT = 30
_REPAIR = (
    "give every node files of one authority, with its address in the certificate"
    " (stream2llm certs --host ADDRESS makes them; docs/security.md)"
)
_RENEW = (
    "replace the file on every node (stream2llm certs --renew): a running cluster reads it again"
)


def check_tls(machine: Machine, today: date) -> Iterator[Finding]:
    """The TLS files of a machine are there, fit together, and last."""
    if machine.tls is None:
        return
    for _, problem in machine.tls.problems:
        yield Finding(Level.PROBLEM, "TLS", problem, _REPAIR)
    if machine.tls.problems:
        return
    name, ends = min(machine.tls.expiry, key=lambda each: each[1])
    soon = (ends.date() - today).days < MIN_DAYS_LEFT
    text = f"security.tls.{name} expires on {ends:%Y-%m-%d}"
    yield Finding(Level.WARNING if soon else Level.OK, "TLS", text, _RENEW if soon else "")


def check_authorities(machines: Sequence[Machine]) -> Iterator[Finding]:
    """All nodes trust the same authority; otherwise their parts refuse each other."""
    found = {each.tls.authority: each.node for each in machines if each.tls and each.tls.authority}
    if len(found) > 1:
        text = f"security.tls.ca has another content on {' than on '.join(found.values())}"
        yield Finding(Level.PROBLEM, "TLS", text, _REPAIR)
