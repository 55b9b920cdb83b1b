"""Which of two running workers to replace when they cannot connect.

Both are examined, and others try to connect with either (`Evidence`). If that is inconclusive,
the newcomer is replaced; and when its successor cannot connect with the same partner, the
partner.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm.cluster.supervision.fleet import Fleet, Phase

# The worker that others connect with ranks higher; untested is in between.
_STANDING = {False: 0, None: 1, True: 2}


@dataclass(frozen=True, slots=True)
class Evidence:
    """Findings about two running workers that cannot connect."""

    # A worker's own fault, or that it does not answer; "" for a healthy one.
    decode_fault: str = ""
    prefill_fault: str = ""
    # Whether it connects with another worker; None without another one.
    decode_connects: bool | None = None
    prefill_connects: bool | None = None


def blamed_for_failed_connection(
    fleet: Fleet, decode: str, prefill: str, evidence: Evidence
) -> tuple[str, str]:
    """Returns which of two running workers that cannot connect to replace, and why."""
    names = (decode, prefill)
    faults = (evidence.decode_fault, evidence.prefill_fault)
    if bool(faults[0]) != bool(faults[1]):
        return (decode, faults[0]) if faults[0] else (prefill, faults[1])
    standing = (_STANDING[evidence.decode_connects], _STANDING[evidence.prefill_connects])
    if standing[0] != standing[1]:
        worse = names[standing.index(min(standing))]
        better = prefill if worse == decode else decode
        if max(standing) == _STANDING[True]:
            return worse, f"{better} connects with another worker"
        return worse, "it connects with no other worker either"
    newcomer, partner = names if fleet[decode].phase is not Phase.ADMITTED else names[::-1]
    if (partner, fleet[partner].incarnation) in fleet[newcomer].replaced_for:
        return partner, f"{newcomer} was replaced for it already"
    return newcomer, "it is the newcomer"
