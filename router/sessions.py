"""The sessions that are open at this router: admission, phases, outcomes.

A router that is full takes a place away from a silent stream where another tenant needs
it: from a tenant that has more than its weight's share of the places, for one that has less.
Silent is a stream that has sent no token since it began, or none for a while, and has not
sealed; the one that has been silent for longest goes first. While this router works on
what a stream has sent, the stream is not silent, and a complete prompt never is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from router.metrics import Phase, RouterMetrics
from router.quotas import (
    THE_ONE,
    RouterPart,
    TenantQuotas,
    newer_mean_s,
    next_end_s,
)
from router.recovery import Cause
from stream2llm.api.errors import OverloadedError, Stream2LLMError, UnavailableError
from stream2llm.api.events import RecoveryInfo, TenantInfo
from stream2llm.security.principal import DEFAULT_TENANT
from stream2llm.serving.settings.router_spec import RouterLimits
from stream2llm.serving.settings.tenant_options import ALL_ALIKE, Quota, TenantsOptions
from stream2llm.serving.system.clock import Clock


class OpenSessions:
    """Owns the places for sessions."""

    def __init__(
        self,
        limits: RouterLimits,
        metrics: RouterMetrics,
        clock: Clock,
        tenants: TenantsOptions = ALL_ALIKE,
        part: RouterPart = THE_ONE,
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._tenants = tenants
        self.quotas = TenantQuotas(tenants, part, self._quota_refused)
        # Since the router began, by the tenants' labels.
        self._computed: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        # By what the sessions had lost.
        self.restarts: Counter[str] = Counter()
        # What that has cost.
        self.recovery = RecoveryInfo()
        self._open: set[SessionPlace] = set()
        self._num_open: Counter[str] = Counter()
        # Mean seconds of a session.
        self._session_s = 0.0
        self.is_draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    def admit(self, tenant: str = DEFAULT_TENANT, *, is_sealed: bool = False) -> SessionPlace:
        """Returns a place for a session; raises when the router is full or draining.

        A quota of the tenant that is used up raises too. A session that sends everything
        at once is sealed from its beginning.
        """
        if self.is_draining:
            raise UnavailableError("the router is draining", reason="DRAINING")
        is_full = self._num_open.total() >= self._limits.max_open_sessions
        victim = self._silent_for(tenant) if is_full else None
        if is_full and victim is None:
            raise OverloadedError(
                f"{self._limits.max_open_sessions} sessions are open, which is the limit"
                " (max_open_sessions)",
                reason="TOO_MANY_SESSIONS",
                retry_after_s=next_end_s(self._session_s, self._num_open.total()),
            )
        self.quotas.open(tenant, self._clock.monotonic_s())
        if victim is not None:
            victim.evict(self._clock.monotonic_s())
        place = SessionPlace(self, self._metrics, self._clock, tenant, is_sealed=is_sealed)
        self._open.add(place)
        self._num_open[tenant] += 1
        self._empty.clear()
        self._metrics.tenants.changed(tenant, 1)
        return place

    def by_phase(self) -> dict[str, int]:
        """Returns the number of sessions by phase; phases without sessions are left out."""
        return dict(Counter(str(place.phase) for place in self._open))

    def by_tenant(self) -> tuple[TenantInfo, ...]:
        """Returns what tenants use: those that are configured, and all others together."""
        num_open, held = Counter[str](), Counter[str]()
        for tenant, num_sessions in self._num_open.items():
            label = self._tenants.label(tenant)
            num_open[label] += num_sessions
            held[label] += self.quotas.use(tenant).held_tokens
        return tuple(
            TenantInfo(
                label,
                num_open[label],
                held[label],
                self._computed[label],
                self._refused[label],
                self._tenants.of(label).weight,
                self._tenants.of(label).priority,
            )
            for label in self._tenants.labels
        )

    def computed(self, tenant: str, num_tokens: int) -> None:
        """Prefill has computed so many tokens for a session of the tenant."""
        self._computed[self._tenants.label(tenant)] += num_tokens
        self._metrics.tenants.computed(tenant, num_tokens)

    def _quota_refused(self, tenant: str, quota: Quota) -> None:
        self._refused[self._tenants.label(tenant)] += 1
        self._metrics.tenants.quota_refused(tenant, quota)

    def end_all(self, error: Stream2LLMError) -> None:
        """Ends every open session with an error."""
        for place in tuple(self._open):
            place.end(error)

    def refuse_new(self) -> None:
        """Stops admission."""
        self.is_draining = True

    async def wait_empty(self, timeout_s: float) -> bool:
        """Waits for the last session to end; returns whether it did in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _silent_for(self, tenant: str) -> SessionPlace | None:
        """The place that the tenant may have, of those that silent streams have."""
        weights = {each: self._tenants.of(each).weight for each in {*self._num_open, tenant}}
        a_place = sum(weights.values()) / self._limits.max_open_sessions

        def is_beyond(each: str, num_more: int) -> bool:
            return (self._num_open[each] + num_more) * a_place > weights[each]

        if is_beyond(tenant, 1):
            return None
        heard_by_s = self._clock.monotonic_s() - self._limits.silent_after_s
        silent = (
            place
            for place in self._open
            if place.is_silent(heard_by_s) and is_beyond(place.tenant, 0)
        )
        return min(silent, key=lambda place: place.silent_since_s, default=None)

    def gave_up(self, place: SessionPlace) -> None:
        """For `SessionPlace` only: the place is free, once for each session."""
        self._num_open[place.tenant] -= 1
        self._metrics.tenants.changed(place.tenant, -1)
        if not self._num_open[place.tenant]:
            del self._num_open[place.tenant]

    def left(self, place: SessionPlace, lasted_s: float) -> None:
        """For `SessionPlace` only."""
        self._session_s = newer_mean_s(self._session_s, lasted_s)
        self._open.discard(place)
        if not self._open:
            self._empty.set()


class SessionPlace:
    """One session's place; must be left exactly once."""

    def __init__(
        self,
        owner: OpenSessions,
        metrics: RouterMetrics,
        clock: Clock,
        tenant: str = DEFAULT_TENANT,
        *,
        is_sealed: bool = False,
    ) -> None:
        self.tenant = tenant
        # Why the session lost its place.
        self.eviction: Stream2LLMError | None = None
        # Called when it does; set by who serves the session.
        self.on_evicted: Callable[[], object] = _nothing
        # Whether content that the client has sent waits for this router; set by who reads it.
        self.has_unhandled_content: Callable[[], bool] = _never
        self._owner = owner
        self._metrics = metrics
        self._clock = clock
        self._admitted_at_s = clock.monotonic_s()
        # When it last sent a token, or was admitted.
        self.silent_since_s = self._admitted_at_s
        self._has_sent = False
        self._is_sealed = is_sealed
        self._held_tokens = 0
        self.phase = Phase.QUEUED
        metrics.phase_changed(None, self.phase)

    def move(self, phase: Phase) -> None:
        """The session's phase has changed."""
        if phase is not self.phase:
            self._metrics.phase_changed(self.phase, phase)
            self.phase = phase

    def received(self, num_tokens: int, held_tokens: int, *, seals: bool = False) -> None:
        """The client has sent tokens, and its context has `held_tokens` now.

        Raises OverloadedError when a quota of the tenant does not allow that.
        """
        now_s = self._clock.monotonic_s()
        self._metrics.tenants.received(self.tenant, num_tokens)
        if num_tokens:
            self.silent_since_s = now_s
            self._has_sent = True
            self._owner.quotas.spend(self.tenant, num_tokens, now_s)
        self._is_sealed |= seals
        self._owner.quotas.hold(self.tenant, held_tokens - self._held_tokens)
        self._held_tokens = held_tokens

    def computed(self, num_tokens: int) -> None:
        """Prefill has computed so many tokens more for the session."""
        self._owner.computed(self.tenant, num_tokens)

    def restarted(self, cause: Cause) -> None:
        """The session has lost a worker, and goes on at another one."""
        self._metrics.restarted(cause)
        self._owner.restarts[cause] += 1

    def recomputed(self, num_tokens: int) -> None:
        """Prefill has computed tokens that a lost worker had."""
        self._metrics.recomputed(num_tokens)
        before = self._owner.recovery
        num_so_far = before.recomputed_tokens + num_tokens
        self._owner.recovery = replace(before, recomputed_tokens=num_so_far)

    def recovered(self, cause: Cause, seconds: float) -> None:
        """The session, which was sealed when it had that loss, has its next token."""
        self._metrics.recovered(cause, seconds)
        before = self._owner.recovery
        self._owner.recovery = replace(
            before,
            num_recovered=before.num_recovered + 1,
            total_s=before.total_s + seconds,
            longest_s=max(before.longest_s, seconds),
        )

    def is_silent(self, heard_by_s: float) -> bool:
        """Whether it has sent no token, or none after `heard_by_s`, and others wait for it in vain."""
        if self._is_sealed or self.eviction is not None or self.has_unhandled_content():
            return False
        # A stream that this router does not read for lack of credit is not silent.
        is_waited_for = self.phase is Phase.WAITING_INPUT
        return not self._has_sent or (is_waited_for and self.silent_since_s <= heard_by_s)

    def evict(self, now_s: float) -> None:
        """Gives the place to another tenant; the session ends."""
        self.end(
            OverloadedError(
                "the router is full and this stream's place went to another tenant: it had sent no"
                f" token for {now_s - self.silent_since_s:.3g} s",
                reason="SILENT",
            )
        )

    def end(self, error: Stream2LLMError) -> None:
        """Takes the place away: the session ends with the error, unless it ends already."""
        if self.eviction is None:
            self.eviction = error
            self._owner.gave_up(self)
            self.on_evicted()

    def leave(self, outcome: str) -> None:
        """The session has ended."""
        now_s = self._clock.monotonic_s()
        lasted_s = now_s - self._admitted_at_s
        self._owner.quotas.hold(self.tenant, -self._held_tokens)
        self._owner.quotas.close(self.tenant, now_s, lasted_s)
        self._metrics.phase_changed(self.phase, None)
        self._metrics.session_ended(outcome, lasted_s)
        if self.eviction is None:
            self._owner.gave_up(self)
        self._owner.left(self, lasted_s)
        # They lead back to the session: without them no cycle is left to collect.
        self.on_evicted, self.has_unhandled_content = _nothing, _never


def _nothing() -> None:
    pass


def _never() -> bool:
    return False
