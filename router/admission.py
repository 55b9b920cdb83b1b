"""Whether a session may open, by a forecast of its first token. Pure.

The forecast is for a session that is sealed at once: the tokens that go before it and its
own, over the rate at which the worker computes. A stream has until its seal, and the queue
may be shorter or longer by then; what comes later is not known. A session is refused only
while others go before it: to wait for an empty queue helps, and work teaches the rate anew.
Which tokens go before it, `WorkQueue.num_before` says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from stream2llm.api.errors import InvalidRequestError, OverloadedError
from stream2llm.api.options import BAD_TTFT_SLO, AskedSlo
from stream2llm.serving.settings.router_spec import AdmissionMode
from stream2llm.serving.settings.tenant_options import TenantsOptions

OUT_OF_REACH = "DEADLINE_OUT_OF_REACH"
# A client that is refused comes back within this time, however long the queue.
MOST_RETRY_S = 60.0
# What `Accepted` has room for.
_MOST_FORECAST_MS = 2**32 - 1


def chosen_slo_ms(
    asked: Iterable[AskedSlo], model_ms: int | None, tenants: TenantsOptions, tenant: str
) -> int:
    """Milliseconds from the seal; 0: no deadline.

    The shortest of those asked for, else what the tenant has, else what the model has. Raises
    InvalidRequestError for one that is longer than the tenant's or the model's.
    """
    tenants_ms = tenants.of(tenant).ttft_slo_ms
    limit_ms = tenants_ms or model_ms
    shortest_ms = limit_ms or 0
    for field, slo_ms in asked:
        if limit_ms is not None and slo_ms > limit_ms:
            whose = f"the tenant {tenant!r}" if tenants_ms else "the model"
            raise InvalidRequestError(
                f"{field} is {slo_ms}; it must be at most {limit_ms}, which {whose} has",
                reason=BAD_TTFT_SLO,
                field=field,
            )
        shortest_ms = min(shortest_ms or slo_ms, slo_ms)
    return shortest_ms


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a session that opens now has to expect."""

    ttft_ms: int
    # Seconds by which the first token comes after the deadline; below 0: before it.
    late_s: float
    # Seconds until nothing goes before it any more, if nothing else comes.
    queue_s: float

    @property
    def holds(self) -> bool:
        """Whether the deadline will be met."""
        return self.late_s <= 0

    @property
    def retry_after_s(self) -> float:
        """Seconds until the queue is as short as it has to be, or empty."""
        return min(self.late_s, self.queue_s)

    def is_refused(self, mode: AdmissionMode) -> bool:
        """Whether the session may not open now."""
        return mode == "refuse" and self.retry_after_s > 0


def forecast(
    num_before: int, num_own: int, tokens_per_s: float | None, ttft_slo_ms: int
) -> Forecast | None:
    """The forecast for tokens before the session and its own; None without rate or deadline."""
    if not ttft_slo_ms or not tokens_per_s:
        return None
    queue_s = num_before / tokens_per_s
    ttft_s = queue_s + num_own / tokens_per_s
    ttft_ms = min(ceil(1000 * ttft_s), _MOST_FORECAST_MS)
    return Forecast(ttft_ms, ttft_s - ttft_slo_ms / 1000, queue_s)


def verdict_of(found: Forecast | None, mode: AdmissionMode) -> str:
    """The label of a forecast in metrics."""
    if found is None:
        return "unknown"
    return "holds" if found.holds else "refused" if found.is_refused(mode) else "warned"


def admit(found: Forecast | None, mode: AdmissionMode, ttft_slo_ms: int) -> int | None:
    """Returns the forecast to warn of, in milliseconds; None: nothing to warn of.

    Raises OverloadedError with the time after which trying again is worth it.
    """
    if found is None or found.holds or mode == "always":
        return None
    if not found.is_refused(mode):
        return found.ttft_ms
    raise OverloadedError(
        f"the first token would come {found.ttft_ms} ms after the seal, by the work that is queued;"
        f" the deadline is {ttft_slo_ms} ms (router.admission)",
        reason=OUT_OF_REACH,
        retry_after_s=min(max(found.retry_after_s, 0.1), MOST_RETRY_S),
    )
