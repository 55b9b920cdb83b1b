"""The slots that vLLM's model runner V2 has for requests, and which sessions hold them.

V2 keeps a request in one of `max_num_seqs` slots from its announcement until it ends, or until
a step names it as preempted; V1 forgets those that are not in a step. Our sessions stay open for
long, and far more of them than one step computes for. So before a step announces more than
there is room for, those that were chosen longest ago give their slots back. They keep their KV,
and are announced anew when they are chosen.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice


@dataclass(slots=True)
class RunnerSlots:
    """Slots by request id; `num_slots` is 0 for a model runner without slots."""

    num_slots: int
    # Those that were chosen longest ago first.
    _holders: dict[str, None] = field(default_factory=dict)

    def choose(self, chosen: Collection[str]) -> list[str]:
        """Gives each chosen session a slot, if it has none; returns those that lose theirs for it.

        A step chooses at most `num_slots` sessions.
        """
        if not self.num_slots:
            return []
        for request_id in chosen:
            self._holders.pop(request_id, None)
            self._holders[request_id] = None
        lost = list(islice(self._holders, max(len(self._holders) - self.num_slots, 0)))
        for request_id in lost:
            del self._holders[request_id]
        return lost

    def release(self, request_id: str) -> None:
        """Takes back the slot of a session that has ended; ignored without one."""
        self._holders.pop(request_id, None)
