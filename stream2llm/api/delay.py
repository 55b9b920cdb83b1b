"""Why a session waits for KV memory, in the words of prefill and of the client."""

from __future__ import annotations

from enum import StrEnum


class DelayReason(StrEnum):
    """A shortage of memory that holds a session up. Busy engines are no delay."""

    KV_MEMORY = "kv_memory"
    """Sessions that rank higher hold it."""
    KV_LEASED = "kv_leased"
    """Hand-overs that no decode worker has fetched yet hold it."""
