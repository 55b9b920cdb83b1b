"""Names that are unique in the cluster."""

from __future__ import annotations

import re
import uuid

MAX_HINT_CHARS = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def unique_id(hint: str) -> str:
    """A unique id with a readable part of `hint` in it.

    Clients choose session ids and may repeat them; engines must never see one
    twice. They may hold anything, too, and NIXL's notifications are text with a
    syntax ("HB:" begins a heartbeat, "," separates ids), so only letters, digits,
    "-" and "_" of the hint survive, behind a prefix of ours.
    """
    readable = _UNSAFE.sub("", hint)[:MAX_HINT_CHARS]
    return f"s-{readable}-{uuid.uuid4().hex[:16]}"
