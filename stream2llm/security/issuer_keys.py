"""The public keys of an issuer (JSON Web Key Set), fetched when they are needed and kept.

Keys are fetched again after `refresh_s`, and at once for a key that is not known, but at
most once a minute: tokens of strangers cannot make us ask the issuer all the time. While
the issuer gives no answer, the keys from before stay in use; without any, it is asked again
after five seconds.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import jwt

from stream2llm.api.errors import UnavailableError
from stream2llm.api.loopback import is_loopback

_log = logging.getLogger(__name__)

LEAST_PAUSE_S = 60.0
# While there are no keys at all, so that no call can be served.
RETRY_S = 5.0
_TIMEOUT_S = 5.0
_MAX_BYTES = 1024 * 1024
# Kinds of keys that can check a signature and cannot make one.
_PUBLIC_KINDS = ("RSA", "EC", "OKP")


class IssuerKeys:
    """Keys by id. Any thread may ask; one fetches."""

    def __init__(
        self,
        source: str,
        refresh_s: float,
        monotonic_s: Callable[[], float],
        read: Callable[[str], bytes] | None = None,
    ) -> None:
        """`source` is an https:// or http:// address, or a path."""
        self._source = source
        self._refresh_s = refresh_s
        self._monotonic_s = monotonic_s
        self._read = read or read_source
        self._keys: dict[str | None, Any] = {}
        self._asked_s: float | None = None
        self._fetching = threading.Lock()

    def may_fetch(self, key_id: str | None) -> bool:
        """Whether `key` would ask the issuer, which takes a while."""
        if self._asked_s is None:
            return True
        age_s = self._monotonic_s() - self._asked_s
        pause_s = self._refresh_s if self._find(key_id) is not None else LEAST_PAUSE_S
        return age_s >= min(pause_s, self._refresh_s if self._keys else RETRY_S)

    def key(self, key_id: str | None) -> Any:
        """The key, or the only one for None; None if the issuer has none of that id.

        Raises UnavailableError when there have never been any keys.
        """
        # A caller whose key is known need not wait for another one's fetch.
        must_wait = self._find(key_id) is None
        if self.may_fetch(key_id) and self._fetching.acquire(blocking=must_wait):
            try:
                if self.may_fetch(key_id):  # not just fetched by another
                    self._fetch()
            finally:
                self._fetching.release()
        if not self._keys:
            raise UnavailableError(
                "the issuer of tokens gives no keys at present", reason="ISSUER_UNAVAILABLE"
            )
        return self._find(key_id)

    def _find(self, key_id: str | None) -> Any:
        keys = self._keys
        if key_id is None:
            return next(iter(keys.values())) if len(keys) == 1 else None
        return keys.get(key_id)

    def _fetch(self) -> None:
        try:
            self._keys = parse_keys(self._read(self._source))
        except (OSError, ValueError, HTTPException) as error:
            _log.error("issuer_keys_unavailable source=%s error=%r", self._source, str(error))
        finally:
            self._asked_s = self._monotonic_s()


def parse_keys(document: bytes) -> dict[str | None, Any]:
    """The usable public keys of a JSON Web Key Set, by id; raises ValueError without any."""
    found: dict[str | None, Any] = {}
    whole = json.loads(document)
    listed = whole.get("keys") if isinstance(whole, dict) else None
    for each in listed if isinstance(listed, list) else ():
        if not isinstance(each, dict) or each.get("kty") not in _PUBLIC_KINDS:
            continue
        if each.get("use", "sig") != "sig" or not isinstance(each.get("kid"), str | None):
            continue
        try:
            found[each.get("kid")] = jwt.PyJWK(each).key
        except jwt.PyJWTError:
            continue  # of a curve or an algorithm that is unknown here
    if not found:
        raise ValueError("no public key for signatures in the JSON Web Key Set")
    return found


def read_source(source: str) -> bytes:
    """The document; raises OSError or HTTPException."""
    if "://" not in source:
        with open(source, "rb") as file:
            return file.read(_MAX_BYTES)
    # No proxy leads to this machine, and it would see what it should not.
    direct = [ProxyHandler({})] if is_loopback(urlsplit(source).hostname or "") else []
    with build_opener(_EncryptedRedirects, *direct).open(source, timeout=_TIMEOUT_S) as answer:
        body: bytes = answer.read(_MAX_BYTES)
        return body


class _EncryptedRedirects(HTTPRedirectHandler):
    """Who can change the document on its way can make tokens: redirects lead to https alone."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme != "https":
            raise URLError(f"redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
