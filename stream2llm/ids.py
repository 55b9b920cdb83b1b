"""Names that are unique in the cluster."""

from __future__ import annotations

import uuid

MAX_HINT_CHARS = 64


def unique_id(hint: str) -> str:
    """A unique id that begins with a readable, shortened `hint`.

    Clients choose session ids and may repeat them; engines must never see one twice.
    """
    return f"{hint[:MAX_HINT_CHARS]}-{uuid.uuid4().hex[:16]}"
