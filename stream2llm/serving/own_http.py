"""HTTP requests to our own servers: the controller, and pages of metrics.

They never use a proxy: `http_proxy` is meant for the outside, and a proxy there reaches
neither a loopback address nor a cluster's own network.
"""

from __future__ import annotations

from typing import Any
from urllib.request import ProxyHandler, Request, build_opener


def open_url(url: str | Request, timeout_s: float) -> Any:
    """Like `urllib.request.urlopen`, with its errors, but bypasses every proxy."""
    return build_opener(ProxyHandler({})).open(url, timeout=timeout_s)
