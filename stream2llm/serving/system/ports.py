"""Checks ports and picks free ones."""

from __future__ import annotations

import random
import socket

# Neither Ray's workers (10002-19999) nor the kernel's outgoing connections
# (from 32768 on) take ports from here while an engine starts.
PORTS = range(20_000, 32_000)


def is_port_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Not SO_REUSEPORT: two servers must never share a port unnoticed.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def is_listening(host: str, port: int, timeout_s: float) -> bool:
    """Whether a server accepts a connection there."""
    try:
        with socket.create_connection((host, port), timeout_s):
            return True
    except (OSError, ValueError, OverflowError):  # also for an invalid name or number
        return False


def pick_port(host: str, seed: str) -> int:
    """Returns a port that is free now and that another seed is unlikely to pick."""
    order = random.Random(seed)
    for _ in range(200):
        port = order.choice(PORTS)
        if is_port_free(host, port):
            return port
    raise OSError(f"no free port on {host} between {PORTS.start} and {PORTS.stop}")
