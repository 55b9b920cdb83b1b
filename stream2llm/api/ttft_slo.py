"""The deadline of a first token: milliseconds from the seal, as a client or a gateway asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from stream2llm.api.arguments import integer
from stream2llm.api.call_metadata import TTFT_SLO_NAMES

# An hour: a session may not be open for longer either.
MAX_TTFT_SLO_MS = 3_600_000
BAD_TTFT_SLO = "BAD_TTFT_SLO"


class AskedSlo(NamedTuple):
    """One deadline, and the field or the name in the call's metadata that asks for it."""

    field: str
    ttft_slo_ms: int


def asked_slo(field: str, value: object) -> AskedSlo:
    """A deadline within the limits; raises InvalidRequestError that names the field and them."""
    return AskedSlo(field, integer(value, field, 1, MAX_TTFT_SLO_MS, BAD_TTFT_SLO))


def slos_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> Iterator[AskedSlo]:
    """Yields every deadline in the metadata of a call; raises InvalidRequestError for a bad one."""
    for name, value in metadata or ():
        if name in TTFT_SLO_NAMES:
            is_number = isinstance(value, str) and value.isascii() and value.isdecimal()
            yield asked_slo(name, int(value) if is_number and len(value) < 20 else value)
