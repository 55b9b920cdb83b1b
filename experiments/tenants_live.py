"""A light client beside a heavy one on a live cluster, and two that want more than there is.

One cluster on this machine (a small random Llama, one prefill and one decode worker, API
keys). The heavy client keeps twenty prompts of 3,900 tokens in the queue, each followed by
another one as soon as it is answered; the light one asks for a short prompt now and then.
Both come as one tenant and as two, and TTFT is the router's, from the request. Then two
tenants of equal weights both want more than there is, one with short and one with long
prompts, and what prefill computes for each is counted. Every prompt has tokens of its own.
Times mean something on a quiet machine only.
"""

from __future__ import annotations

import asyncio
import random
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments.lab_cluster import counted, lab_cluster
from experiments.tenants import HEAVY, Client, report_light, report_served
from stream2llm.api.credentials import ClientSecurity, credentials_of
from stream2llm.api.tasks import TaskGroup
from stream2llm.api.tenant import TenantShare
from stream2llm.client import AsyncClient, SamplingParameters
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.security.key_edit import create_key
from stream2llm.security.principal import Scope
from stream2llm.serving.settings.worker_options import PrefillOptions

READY_TIMEOUT_S = 600.0
VOCAB_SIZE = 49_000
ONE_TOKEN = SamplingParameters(max_tokens=1, temperature=0.0)
COMPUTED = "stream2llm_tenant_prefilled_tokens_total"

LIGHT = Client(TenantShare("light"), num_tokens=100, pause_s=0.3)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked."""

    heavy: Client
    # Questions of the light client, in each of the three ways.
    num_questions: int
    # So long both want more than there is.
    seconds: float

    @property
    def greedy(self) -> tuple[Client, Client]:
        """The one with long prompts, and the other with short ones."""
        return self.heavy, replace(LIGHT, num_at_once=20, pause_s=0.0)


FULL = Plan(HEAVY, num_questions=20, seconds=30.0)
QUICK = Plan(replace(HEAVY, num_tokens=1000), num_questions=5, seconds=10.0)


@dataclass(frozen=True, slots=True)
class Site:
    """A running cluster, and a key for each tenant."""

    cluster: Cluster
    keys: Mapping[str, str]

    def computed(self) -> Counter[str]:
        """Tokens that prefill has computed so far, by tenant."""
        security = ClientSecurity(credentials=credentials_of(self.keys["heavy"], None))
        return counted(self.cluster.http_address, COMPUTED, "tenant", security)


class Asking:
    """One client's prompts, as a tenant's."""

    def __init__(self, client: AsyncClient, what: Client) -> None:
        self._client = client
        self._what = what
        self._random = random.Random(what.num_tokens)
        self.has_answer = asyncio.Event()

    async def ask(self) -> float:
        """Sends a prompt that is in no cache; returns its TTFT from the seal, in seconds."""
        prompt = [self._random.randrange(VOCAB_SIZE) for _ in range(self._what.num_tokens)]
        answer = await self._client.generate(prompt, sampling=ONE_TOKEN).answer()
        self.has_answer.set()
        return answer.finished.timings.ttft_from_seal_s

    async def ask_often(self, num_questions: int) -> list[float]:
        """Sends that many prompts one after the other, with pauses; returns their TTFTs in seconds."""
        ttft_s = []
        for _ in range(num_questions):
            ttft_s.append(await self.ask())
            await asyncio.sleep(self._what.pause_s)
        return ttft_s

    @asynccontextmanager
    async def looping(self) -> AsyncIterator[None]:
        """Keeps its prompts in the queue, from the first answer on."""

        async def loop() -> None:
            while True:
                await self.ask()

        async with TaskGroup() as group:
            loops = [group.create_task(loop()) for _ in range(self._what.num_at_once)]
            await self.has_answer.wait()
            try:
                yield
            finally:
                for each in loops:
                    each.cancel()


def main(args: Namespace) -> list[str]:
    """Prints both tables; returns what was wanted and is not so."""
    plan = plan_of(args)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "keys.jsonl"
        keys = {name: create_key(path, name, Scope) for name in ("heavy", "light")}
        with Cluster.start(_config(path, args.shared_token_budget)) as cluster:
            cluster.wait_ready(READY_TIMEOUT_S)
            return asyncio.run(_run(Site(cluster, keys), plan))


def add_options(parser: ArgumentParser) -> None:
    """Adds the number of questions, the seconds and the token budget."""
    parser.add_argument("--quick", action="store_true", help="prompts of 1,000 tokens, and few")
    parser.add_argument("--questions", type=int, help="of the light client, each way; 20")
    parser.add_argument("--seconds", type=float, help="that both want too much; 30")
    parser.add_argument(
        "--shared-token-budget",
        type=int,
        default=PrefillOptions().shared_token_budget,
        help="see `prefill.shared_token_budget`",
    )


def plan_of(args: Namespace) -> Plan:
    """Returns what the options ask for; those that are given override a plan's own."""
    plan = QUICK if args.quick else FULL
    return replace(
        plan,
        num_questions=args.questions or plan.num_questions,
        seconds=args.seconds or plan.seconds,
    )


def _config(keys_file: Path, shared_token_budget: int) -> ClusterConfig:
    return lab_cluster(
        "experiments.tenants_live",
        max_model_len=4096,
        max_num_seqs=64,
        prefill={"shared_token_budget": shared_token_budget},
        security={
            "auth": {"keys_file": str(keys_file)},
            "tenants": {"named": {"heavy": {}, "light": {}}},
        },
    )


async def _run(site: Site, plan: Plan) -> list[str]:
    alone = await _light(site, "light", plan.num_questions)
    as_one, as_two = [
        await _light(site, tenant, plan.num_questions, plan.heavy) for tenant in ("heavy", "light")
    ]
    misses = report_light(alone, as_one, as_two)
    titles = [f"{each.num_at_once} x {each.num_tokens:,} tokens" for each in plan.greedy]
    return misses + report_served(titles, {"two tenants": await _served(site, plan)})


async def _light(
    site: Site, tenant: str, num_questions: int, beside: Client | None = None
) -> list[float]:
    """TTFT of the light client's questions, asked as that tenant."""
    async with AsyncExitStack() as stack:
        if beside is not None:
            await stack.enter_async_context(_asking(site, "heavy", beside, loops=True))
        light = await stack.enter_async_context(_asking(site, tenant, LIGHT))
        await light.ask()  # whatever a first one has to set up
        return await light.ask_often(num_questions)


async def _served(site: Site, plan: Plan) -> dict[str, int]:
    """Tokens computed for each tenant while all want more."""
    async with AsyncExitStack() as stack:
        for each in plan.greedy:
            asking = _asking(site, each.tenant.name, each, loops=True)
            await stack.enter_async_context(asking)
        before = await asyncio.to_thread(site.computed)
        await asyncio.sleep(plan.seconds)
        after = await asyncio.to_thread(site.computed)
    names = [each.tenant.name for each in plan.greedy]
    return {name: after[name] - before[name] for name in names}


@asynccontextmanager
async def _asking(
    site: Site, tenant: str, what: Client, *, loops: bool = False
) -> AsyncIterator[Asking]:
    address, key = site.cluster.router_addresses[0], site.keys[tenant]
    async with AsyncClient(address, api_key=key) as client, AsyncExitStack() as stack:
        asking = Asking(client, what)
        if loops:
            await stack.enter_async_context(asking.looping())
        yield asking
