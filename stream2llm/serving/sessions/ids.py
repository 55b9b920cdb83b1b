"""Ids that are unique in the cluster."""

from __future__ import annotations

import re
import uuid

MAX_HINT_CHARS = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def unique_id(hint: str) -> str:
    """Returns a unique id that contains a readable part of `hint`.

    Clients choose session ids and may repeat them, but engines must never get one twice.
    They may also contain anything, and NIXL's notifications are text with a syntax ("HB:"
    begins a heartbeat, "," separates ids), so only letters, digits, "-" and "_" of the hint
    are kept, behind a prefix of ours.
    """
    readable = _UNSAFE.sub("", hint)[:MAX_HINT_CHARS]
    return f"s-{readable}-{uuid.uuid4().hex[:16]}"
