"""A light client beside a heavy one, and tenants that all want more than there is: simulated.

The heavy one keeps twenty prompts of 3,900 tokens in the queue, each followed by another
one as soon as it is answered; the light one asks for a short prompt now and then. Both are
played on the production planner with the step law of two H200 (`paper/data/h200_fit.json`),
as one tenant and as two. A closed loop, so it needs no trace.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from cost_profiles.correction import CorrectedCostModel
from cost_profiles.model import CostModel
from experiments.paper.h200 import BLOCK_SIZE, NUM_BLOCKS, load_fit, profile
from stream2llm.api.tenant import TenantShare
from stream2llm.simulator.prefill import PrefillWorker
from stream2llm.simulator.prefill_settings import PrefillSettings
from stream2llm.simulator.work import Change
from stream2llm.workload.table import Table, markdown

TOKEN_BUDGET = 8192
# Wanted: TTFT of the light client beside the heavy one, in multiples of its own alone.
MOST_TIMES_ALONE = 3.0
LEAST_JAIN = 0.95


@dataclass(frozen=True, slots=True)
class Client:
    """Sessions of one tenant, each sealed at once."""

    tenant: TenantShare
    num_tokens: int
    # Sessions that are open at a time, each followed by the next.
    num_at_once: int = 1
    # Seconds from the answer to the next session.
    pause_s: float = 0.0
    # Every session first sends so many lists of that length, each replacing all before.
    num_replaced: int = 0


@dataclass(slots=True)
class Played:
    """The results, by the name of the tenant."""

    ttft_s: dict[str, list[float]] = field(default_factory=dict)
    # Tokens computed, those that were thrown away included.
    work: Counter[str] = field(default_factory=Counter)


class ClosedLoop:
    """Clients on one prefill worker in virtual time."""

    def __init__(
        self,
        clients: Sequence[Client],
        share_of: Callable[[Client], TenantShare],
        num_blocks: int = NUM_BLOCKS,
    ) -> None:
        fit = load_fit()
        costs = CostModel(profile(fit, TOKEN_BUDGET))
        settings = PrefillSettings(num_blocks, BLOCK_SIZE, TOKEN_BUDGET)
        self._worker = PrefillWorker(settings, fit.law.seconds, costs, CorrectedCostModel(costs))
        self._share_of = share_of
        self._now_s = 0.0
        self._num_sessions = 0
        self._client_of: dict[str, Client] = {}
        self._opened_s: dict[str, float] = {}
        self._lists_left: dict[str, int] = {}
        # When which client opens its next session.
        self._due = [(0.0, each) for each in clients for _ in range(each.num_at_once)]
        self.played = Played(work=Counter({each.tenant.name: 0 for each in clients}))

    def run(self, until_s: float) -> Played:
        """Plays until then."""
        while self._now_s < until_s:
            self._open_due()
            result = self._worker.begin_step()
            if result is None:
                self._now_s = min(at_s for at_s, _ in self._due)
                continue
            self._now_s += result.seconds
            for name in result.sampled:
                self._answered(name)
            self._worker.end_step(result)
            for name in result.sampled:
                self._worker.release(name)
            for name in result.computed:
                self._replace(name)
        return self.played

    def _open_due(self) -> None:
        due = [each for each in self._due if each[0] <= self._now_s]
        self._due = [each for each in self._due if each[0] > self._now_s]
        for at_s, client in due:
            self._num_sessions += 1
            name = f"{client.tenant.name}-{self._num_sessions}"
            self._client_of[name], self._opened_s[name] = client, at_s
            self._lists_left[name] = client.num_replaced
            seals = not client.num_replaced
            change = Change(at_s, 0, client.num_tokens, seals)
            self._worker.change(name, change, tenant=self._share_of(client))

    def _replace(self, name: str) -> None:
        """The next list, once the last one is computed; the last of all is sealed."""
        if name not in self._client_of or self._worker.has_work(name):
            return
        self._lists_left[name] -= 1
        num_tokens = self._client_of[name].num_tokens
        seals = self._lists_left[name] <= 0
        self._worker.change(name, Change(self._now_s, 0, num_tokens, seals, is_update=True))

    def _answered(self, name: str) -> None:
        client, tenant = self._client_of.pop(name), self._client_name(name)
        ttft_s = self._now_s - self._opened_s.pop(name)
        self.played.ttft_s.setdefault(tenant, []).append(ttft_s)
        self.played.work[tenant] += self._worker.session_counters(name).computed
        self._due.append((self._now_s + client.pause_s, client))

    def _client_name(self, name: str) -> str:
        return name.rsplit("-", 1)[0]


def play(
    clients: Sequence[Client],
    until_s: float = 60.0,
    *,
    as_one: bool = False,
    num_blocks: int = NUM_BLOCKS,
) -> Played:
    """Plays the clients as tenants of their own, or all as one."""
    one = TenantShare("all")
    loop = ClosedLoop(clients, lambda client: one if as_one else client.tenant, num_blocks)
    return loop.run(until_s)


def jain(shares: Mapping[str, float]) -> float:
    """Jain's index of fairness: 1 if all have the same, 1/n if one has it all."""
    values = list(shares.values())
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


HEAVY = Client(TenantShare("heavy"), num_tokens=3900, num_at_once=20)
LIGHT = Client(TenantShare("light"), num_tokens=1000, pause_s=0.7)
# Equal weights; all want more than there is, each in its own way.
GREEDY = (
    Client(TenantShare("short"), num_tokens=300, num_at_once=8),
    Client(TenantShare("long"), num_tokens=20_000, num_at_once=2),
    Client(TenantShare("many"), num_tokens=3900, num_at_once=40),
    Client(TenantShare("replaces"), num_tokens=4000, num_at_once=4, num_replaced=5),
)


def main(_args: Namespace) -> list[str]:
    """Prints both tables; returns what was wanted and is not so."""
    alone = play([LIGHT]).ttft_s["light"]
    as_one, as_two = (play([LIGHT, HEAVY], as_one=one).ttft_s["light"] for one in (True, False))
    misses = report_light(alone, as_one, as_two)
    work = {"one tenant": play(GREEDY, as_one=True).work, "four tenants": play(GREEDY).work}
    return misses + report_served([each.tenant.name for each in GREEDY], work)


def report_light(
    alone: Sequence[float], as_one: Sequence[float], as_two: Sequence[float]
) -> list[str]:
    """Prints the light client's TTFT (seconds); returns what was wanted of two tenants and is not so."""
    rows = {"alone": alone, "beside the heavy one, one tenant": as_one, "two tenants": as_two}
    cells = [
        [label, f"{median(each):.3f}", f"{max(each):.3f}", f"{median(each) / median(alone):.1f}"]
        for label, each in rows.items()
    ]
    print(markdown(Table(("light client", "TTFT P50, s", "maximum, s", "P50 / alone"), cells)))
    times = median(as_two) / median(alone)
    return [f"the light client waits {times:.1f} x its own TTFT"] * (times > MOST_TIMES_ALONE)


def report_served(titles: Sequence[str], work: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Prints tokens by tenant, a row for each label; returns what the last one misses."""
    cells = [
        [label, *(f"{each:,}" for each in served.values()), f"{jain(served):.3f}"]
        for label, served in work.items()
    ]
    print(markdown(Table(("tokens served", *titles, "Jain"), cells)))
    index = jain(list(work.values())[-1])
    return [f"Jain's index of served work is {index:.3f}"] * (index < LEAST_JAIN)
