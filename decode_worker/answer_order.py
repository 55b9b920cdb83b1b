"""Which answer a decode worker takes up first: tenants by weight and priority. Pure.

An answer gets a tag when it is submitted, as in start-time fair queueing: the virtual time
of its tenant, which then grows by the KV room that the answer asks for (its context and as
many tokens as it may have), by weight. The lowest tag is taken up first, and loses its KV
last when memory is short; of one tenant that is the order of submission. Every running
answer gets a token in each step, so room and steps follow the tags.

What an answer has not used of its room is given back when it ends. Tags do not change, so
answers do not evict each other in turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stream2llm.api.tenant import MAX_PRIORITY, TenantShare
from stream2llm.serving.sessions.answer_use import AnswerCount, AnswerUses
from stream2llm.serving.sessions.tenant_ledger import TOKEN, TenantLedger
from stream2llm.serving.settings.tenant_options import ALL_ALIKE, TenantsOptions

# Bits for the virtual time, in tokens; the level of priority stands above them.
_TIME_BITS = 55
# Behind all answers: KV prefetches, for which no client waits yet.
LAST_RANK = 2**63 - 1


@dataclass(frozen=True, slots=True)
class AnswerTag:
    """An answer's place among the others."""

    tenant: TenantShare
    # Virtual time at which it was due.
    time: int
    num_tokens: int

    @property
    def rank(self) -> int:
        """The lowest is taken up first; positive, for what belongs to no tenant goes before."""
        level = MAX_PRIORITY - self.tenant.priority
        return (level << _TIME_BITS) + self.time // TOKEN + 1


class AnswerOrder:
    """Gives out tags; bounded as the ledger is."""

    def __init__(self, tenants: TenantsOptions = ALL_ALIKE) -> None:
        self._ledger = TenantLedger()
        self._num_answers = Counter[str]()
        self.uses = AnswerUses(tenants)

    @contextmanager
    def turn(
        self, tenant: TenantShare, num_prompt_tokens: int, num_more_tokens: int
    ) -> Iterator[AnswerTurn]:
        """One answer, from its submission to its end, however it ends."""
        tag = self.submitted(tenant, num_prompt_tokens + num_more_tokens)
        count = self.uses.count(tenant.name, num_prompt_tokens)
        try:
            yield AnswerTurn(self, tag, count)
        finally:
            self.ended(tag, count.leave())

    def submitted(self, tenant: TenantShare, num_tokens: int) -> AnswerTag:
        """An answer asks for room for so many tokens."""
        self._num_answers[tenant.name] += 1
        tag = AnswerTag(tenant, self._ledger.resume(tenant), num_tokens)
        self._ledger.charge(tenant, num_tokens)
        return tag

    def began(self, tag: AnswerTag) -> None:
        """The answer was taken up: who comes from now on starts at its virtual time."""
        self._ledger.advance(tag.tenant.priority, tag.time)

    def ended(self, tag: AnswerTag, num_used_tokens: int) -> None:
        """The answer has ended, after so many tokens of its room."""
        name = tag.tenant.name
        self._ledger.charge(tag.tenant, num_used_tokens - tag.num_tokens)
        self._num_answers[name] -= 1
        if not self._num_answers[name]:
            del self._num_answers[name]
            self._ledger.depart(name)


class AnswerTurn:
    """One answer's part in the order."""

    def __init__(self, order: AnswerOrder, tag: AnswerTag, count: AnswerCount) -> None:
        self._order = order
        self._tag = tag
        self._count = count

    @property
    def rank(self) -> int:
        """See `AnswerTag.rank`."""
        return self._tag.rank

    def stepped(self, num_tokens: int) -> None:
        """A step has brought tokens; with the first one the answer has been taken up."""
        if not self._count.is_running:
            self._order.began(self._tag)
        self._count.stepped(num_tokens)
