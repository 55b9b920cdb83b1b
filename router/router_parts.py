"""What all sessions of a router use."""

from __future__ import annotations

from dataclasses import dataclass

from router.detokenizer import Detokenizers
from router.lengths import LengthLimits, limits_with
from router.metrics import RouterMetrics
from router.sessions import OpenSessions
from router.text_input import TextInput
from router.workers import WorkerPool
from stream2llm.serving.observability.tracing import Tracing
from stream2llm.serving.settings.router_spec import RouterSpec
from stream2llm.serving.system.clock import Clock


@dataclass(frozen=True, slots=True)
class RouterParts:
    """The parts of one router, which its sessions share."""

    spec: RouterSpec
    text: TextInput
    detokenizers: Detokenizers
    workers: WorkerPool
    sessions: OpenSessions
    metrics: RouterMetrics
    clock: Clock
    tracing: Tracing

    def lengths(self) -> LengthLimits:
        """The limits on prompt and answer with the present workers."""
        addresses = (worker.address for worker in self.workers)
        return limits_with(self.spec.max_model_len, addresses)
