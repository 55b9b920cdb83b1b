"""Quotas by tenant: open sessions, tokens held, tokens a minute. Pure; time comes with each call.

A quota holds for the whole cluster. Routers do not know each other's sessions, so each one
has a part of every quota, and the parts add up to the quota: whatever the routers admit
together stays within it, also while one of them, or the controller, is gone.

Open sessions and tokens held are counted. Tokens a minute are a bucket that holds a minute's
worth: sessions that are open may empty it and go into debt by as much again and no further,
new ones are refused until it is paid. So a session is not cut off in the middle of its
context for what others of its tenant have sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stream2llm.api.errors import OverloadedError
from stream2llm.serving.settings.tenant_options import Quota, TenantOptions, TenantsOptions

_MINUTE_S = 60.0
# Between these a refusal asks to wait, where only the end of other sessions can help.
_MIN_WAIT_S, _MAX_WAIT_S = 1.0, 60.0
# How much the newest session's duration counts in the mean.
_NEWEST = 0.2


@dataclass(frozen=True, slots=True)
class RouterPart:
    """Which of the routers this one is."""

    index: int = 0
    num_routers: int = 1

    def of(self, limit: int) -> int:
        """Its part of a limit; the parts of all routers add up to it."""
        return limit * (self.index + 1) // self.num_routers - limit * self.index // self.num_routers


# The only router.
THE_ONE = RouterPart()


@dataclass(slots=True)
class TenantUse:
    """What one tenant uses of this router now."""

    num_open: int = 0
    held_tokens: int = 0
    # Mean seconds of its sessions, the newest counting most.
    session_s: float = _MIN_WAIT_S
    # Tokens in the bucket; below 0 it is in debt.
    budget_tokens: float = 0.0
    budget_at_s: float = 0.0


def newer_mean_s(mean_s: float, newest_s: float, weight: float = _NEWEST) -> float:
    """Returns the moving mean of durations after one more, of that weight; seconds."""
    return mean_s + weight * (newest_s - mean_s)


def next_end_s(session_s: float, num_open: int) -> float:
    """Seconds until one of the open sessions is likely to end, by their mean duration; 1 to 60."""
    return min(max(session_s / max(num_open, 1), _MIN_WAIT_S), _MAX_WAIT_S)


class TenantQuotas:
    """What all tenants use of one router."""

    def __init__(
        self,
        options: TenantsOptions,
        part: RouterPart = THE_ONE,
        on_refused: Callable[[str, Quota], None] = lambda _tenant, _quota: None,
    ) -> None:
        self._options = options
        self._part = part
        self._on_refused = on_refused
        self._uses: dict[str, TenantUse] = {}

    def use(self, tenant: str) -> TenantUse:
        """What the tenant uses; nothing, if it has never come."""
        return self._uses.get(tenant, TenantUse())

    def __len__(self) -> int:
        return len(self._uses)

    def open(self, tenant: str, now_s: float) -> None:
        """A session begins; raises OverloadedError when a quota does not allow it."""
        options = self._options.of(tenant)
        use = self._uses.get(tenant) or self._new_use(options, now_s)
        self._check_open(tenant, options, use)
        self._check_budget(tenant, use, now_s)
        use.num_open += 1
        self._uses[tenant] = use

    def close(self, tenant: str, now_s: float, lasted_s: float) -> None:
        """A session has ended, whose held tokens were counted off before."""
        use = self._uses[tenant]
        use.num_open -= 1
        use.session_s = newer_mean_s(use.session_s, lasted_s)
        if not use.num_open:
            self._forget_idle(now_s)

    def hold(self, tenant: str, change: int) -> None:
        """An open session's context grows, or shrinks; raises OverloadedError beyond the quota."""
        use, limit = self._uses[tenant], self._limit(tenant, Quota.HELD_TOKENS)
        if limit is not None and change > 0 and use.held_tokens + change > limit[0]:
            raise self._refusal(
                tenant,
                Quota.HELD_TOKENS,
                limit,
                f"its open sessions hold {use.held_tokens} tokens, {change} more were sent",
                next_end_s(use.session_s, use.num_open),
            )
        use.held_tokens += change

    def spend(self, tenant: str, num_tokens: int, now_s: float) -> None:
        """An open session has sent tokens; raises OverloadedError when the debt would be too large.

        Then they are not counted: the session ends, and nothing is computed for them.
        """
        use = self._uses[tenant]
        self._check_budget(tenant, use, now_s, num_tokens)
        use.budget_tokens -= num_tokens

    # -- checks ------------------------------------------------------------------------

    def _limit(self, tenant: str, quota: Quota) -> tuple[int, int] | None:
        """This router's part of a quota, and the whole; None: there is none."""
        whole = getattr(self._options.of(tenant), quota.value)
        return None if whole is None else (self._part.of(whole), whole)

    def _check_open(self, tenant: str, options: TenantOptions, use: TenantUse) -> None:
        limit = self._limit(tenant, Quota.OPEN_SESSIONS)
        if limit is not None and use.num_open >= limit[0]:
            wait_s = next_end_s(use.session_s, use.num_open)
            what = f"it has {use.num_open} sessions open"
            raise self._refusal(tenant, Quota.OPEN_SESSIONS, limit, what, wait_s)

    def _check_budget(
        self, tenant: str, use: TenantUse, now_s: float, num_sent: int | None = None
    ) -> None:
        """Fills the bucket up; refuses a new session, or tokens that one has sent.

        What was sent may leave a minute's debt, a new session none.
        """
        limit = self._limit(tenant, Quota.TOKENS_PER_MINUTE)
        if limit is None:
            return
        rate = limit[0] / _MINUTE_S
        filled = use.budget_tokens + rate * (now_s - use.budget_at_s)
        use.budget_tokens, use.budget_at_s = min(filled, limit[0]), now_s
        wanted = 0 if num_sent is None else num_sent - limit[0]
        if use.budget_tokens >= wanted and limit[0]:
            return
        wait_s: float | None = (wanted - use.budget_tokens) / rate if rate else _MAX_WAIT_S
        what = "it has sent that many tokens"
        if num_sent is not None:
            what += f", and {num_sent} more in one event"
        if wanted > limit[0]:  # a full bucket has less
            wait_s, what = None, f"{num_sent} tokens came in one event, which is over two minutes'"
        raise self._refusal(tenant, Quota.TOKENS_PER_MINUTE, limit, what, wait_s)

    def _refusal(
        self, tenant: str, quota: Quota, limit: tuple[int, int], what: str, wait_s: float | None
    ) -> OverloadedError:
        """The error; without `wait_s` trying again does not help."""
        self._on_refused(tenant, quota)
        mine, whole = limit
        here = "" if mine == whole else f", of which this router has {mine}"
        again = "" if wait_s is None else f"; try again in {wait_s:.3g} s"
        error = OverloadedError(
            f"the tenant's quota {quota} is {whole}{here}: {what}{again}",
            reason=f"QUOTA_{quota.name}",
        )
        error.retry_after_s = wait_s  # not the class's default
        return error

    # -- tenants that are gone -----------------------------------------------------------

    def _new_use(self, options: TenantOptions, now_s: float) -> TenantUse:
        per_minute = options.max_tokens_per_minute or 0
        return TenantUse(budget_tokens=self._part.of(per_minute), budget_at_s=now_s)

    def _forget_idle(self, now_s: float) -> None:
        """Drops tenants that have nothing open and whose bucket would be full again.

        It is full after two minutes at most, so only those of two minutes are here.
        """
        for tenant, use in list(self._uses.items()):
            if not use.num_open and self._is_settled(tenant, use, now_s):
                del self._uses[tenant]

    def _is_settled(self, tenant: str, use: TenantUse, now_s: float) -> bool:
        limit = self._limit(tenant, Quota.TOKENS_PER_MINUTE)
        rate = 0.0 if limit is None else limit[0] / _MINUTE_S
        filled = use.budget_tokens + rate * (now_s - use.budget_at_s)
        return limit is None or filled >= limit[0]
