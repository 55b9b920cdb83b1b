"""Which worker gets a session. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stream2llm.serving.worker_spec import Role


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as placement sees it."""

    worker_id: str
    role: Role
    # False after it failed at transport level, until it answers again.
    usable: bool
    # Sessions of this router that it holds.
    num_sessions: int


def pick(workers: Iterable[WorkerView], role: Role) -> str | None:
    """The least loaded usable worker of the role; the id breaks ties. None: there is none."""
    candidates = [worker for worker in workers if worker.role == role and worker.usable]
    best = min(candidates, key=lambda w: (w.num_sessions, w.worker_id), default=None)
    return None if best is None else best.worker_id
