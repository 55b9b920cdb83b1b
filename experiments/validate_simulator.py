"""Holds the simulator against a live cluster.

One run on this machine: the cost profile is measured (`stream2llm profile`), a
cluster is started with the same engine arguments, a generated trace is replayed
through router and engine, and the same trace is simulated with that profile. Prints
P50, P95 and P99 of TTFT from the seal, measured, simulated and their ratio; P50 and
P95 may be 25 % apart.

What the profile cannot know, the way from a client to the engine and back, is taken from
short questions that are asked one at a time before: their TTFT, less what the profile
says of their step. Keep the machine free of other work meanwhile: a profile
taken beside a busy neighbour describes another machine.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from cost_profiles.load import load_profile
from cost_profiles.types import CostProfile
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig, on_free_ports
from stream2llm.cluster.config_file import default_config, load_config
from stream2llm.models.token_counter import token_counter
from stream2llm.serving.settings.worker_options import DEFAULT_POLICY
from stream2llm.serving.system.signals import catch_signals
from stream2llm.simulator.play_trace import Machine, Way, play_trace
from stream2llm.simulator.steps import StepLaw, law_of, worst_error
from stream2llm.simulator.work import Task, tasks
from stream2llm.workload.records import RunRecord
from stream2llm.workload.replay.plan import PlannedSession, Planner
from stream2llm.workload.replay.run import Target, replay
from stream2llm.workload.replay.session import Asking
from stream2llm.workload.report.summary import latencies, summarize
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.arrivals import Poisson, first
from stream2llm.workload.traces.format import Scale, Session, Shape
from stream2llm.workload.traces.generate import generate
from stream2llm.workload.traces.text import TextMaker

PERCENTILES = (50, 95, 99)
CHECKED = (50, 95)
TOLERANCE = 0.25
READY_TIMEOUT_S = 300.0
SESSION_TIMEOUT_S = 600.0
NUM_SHORT_QUESTIONS, NUM_WARM_UP_QUESTIONS = 12, 2
# The crawler's longest prompts have to fit 8 K tokens of context.
TOKEN_SCALE = 1 / 8
# The longest session, as a share of the model's length, by the trace's count, which is that
# of its texts to within a few percent. Longer ones would be refused, and are left out.
LONGEST_SHARE = 0.95
ONE_TOKEN = SamplingParameters(max_tokens=1, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """What is compared."""

    shape: Shape
    num_sessions: int
    # Share of the prefill rate that the profile promises.
    load: float
    policy: str
    seed: int


def main(args: Namespace) -> list[str]:
    """Profile, cluster, replay, simulation, table."""
    catch_signals()
    config = on_free_ports(load_config(args.config))
    with tempfile.TemporaryDirectory() as folder:
        profile = _profile(args.config, args.profile, Path(folder))
    law = law_of(profile)
    print(f"law of the profile: {law}; off by {worst_error(law, profile):.1%} at most", flush=True)
    missed: list[str] = []
    with Cluster.start(config) as cluster:
        catch_signals()  # Ray has put handlers of its own in place
        cluster.wait_ready(READY_TIMEOUT_S, print)
        for shape in args.shapes:
            trial = Trial(shape, args.sessions, args.load, args.policy, args.seed)
            missed += _try(cluster, config, profile, law, trial)
    return missed


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=default_config())
    parser.add_argument("--profile", type=Path, help="one taken a moment ago; by default measured")
    parser.add_argument("--shapes", nargs="+", default=["crawler", "anns"])
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--policy", default=DEFAULT_POLICY)
    parser.add_argument("--seed", type=int, default=1)


def _profile(config: Path, given: Path | None, folder: Path) -> CostProfile:
    if given is not None:
        return load_profile(given)
    path = folder / "profile.json"
    # A process of its own: vLLM keeps global state.
    command = ["-m", "stream2llm.cli.main", "profile", "--config", str(config), "-o", str(path)]
    subprocess.run([sys.executable, *command], check=True)
    return load_profile(path)


def _try(
    cluster: Cluster, config: ClusterConfig, profile: CostProfile, law: StepLaw, trial: Trial
) -> list[str]:
    """One shape; what is too far apart."""
    cluster.set_policy(trial.policy)
    maker = TextMaker(token_counter(config.model))
    most_tokens = int(LONGEST_SHARE * config.prefill.engine["max_model_len"])
    sessions = fitting_sessions(trial, law, profile.recompute.token_budget, most_tokens, maker)
    plan = list(Planner(maker).plan(sessions, {}))
    asked = tasks(sessions)
    address = cluster.router_addresses[0]
    front_s = asyncio.run(_front_s(address, law))
    measured = asyncio.run(_replay(address, plan, trial))
    machine = Machine(
        profile,
        kv_gib=_kv_gib(config),
        token_budget=config.prefill.engine["max_num_batched_tokens"],
        num_prefill=config.prefill.replicas,
        front_s=front_s,
        law=law,
    )
    way = Way(config.worker_options.with_policy(trial.policy))
    return _compare(trial, measured, _simulated(machine, way, trial, asked), front_s)


def _kv_gib(config: ClusterConfig) -> float:
    """KV memory of a prefill worker; raises InvalidRequestError if the configuration has none."""
    name = "VLLM_CPU_KVCACHE_SPACE"
    if name not in config.prefill.env:
        raise InvalidRequestError(
            f"the simulator has to know the KV memory: give {name}", field=f"prefill.env.{name}"
        )
    return float(config.prefill.env[name])


def fitting_sessions(
    trial: Trial, law: StepLaw, token_budget: int, most_tokens: int, maker: TextMaker | None
) -> list[Session]:
    """A trace whose load is the wanted share of what the law can prefill, without longer sessions."""
    rng = random.Random(f"{trial.seed}/arrivals")
    scale = Scale(tokens=TOKEN_SCALE)
    alike = tasks(generate(trial.shape, [0.0] * trial.num_sessions, trial.seed, scale))
    fitting = [each for each in alike if each.num_longest_tokens <= most_tokens]
    work_s = sum(_work_s(each, law, token_budget) for each in fitting)
    arrivals = first(
        trial.num_sessions,
        Poisson().arrivals(trial.load * trial.num_sessions / work_s, rng),
        "poisson",
    )
    generated = generate(trial.shape, arrivals, trial.seed, scale, maker)
    pairs = [(each, tasks([each])[0]) for each in generated]
    return [session for session, task in pairs if task.num_longest_tokens <= most_tokens]


def _work_s(task: Task, law: StepLaw, token_budget: int) -> float:
    """All that a session makes an engine compute that keeps up with it."""
    steps = 0.0
    changes = (task.changes[0]._replace(num_known=0), *task.changes)
    for before, after in pairwise(changes):
        done = min(before.num_known, after.num_kept)
        steps += law.seconds_to(after.num_known, token_budget) - law.seconds_to(done, token_budget)
    return steps


async def _front_s(address: str, law: StepLaw) -> float:
    """The way there and back, without the step itself; the first questions warm up."""
    found = []
    async with AsyncClient(address) as client:
        for number in range(NUM_SHORT_QUESTIONS):
            loop = asyncio.get_running_loop()
            async with client.session(prefix=f"{number} is a number.", sampling=ONE_TOKEN) as each:
                began_s = loop.time()
                await each.answer()
                found.append(loop.time() - began_s)
    return max(median(found[NUM_WARM_UP_QUESTIONS:]) - law.seconds([(0, 8)]), 0.0)


async def _replay(address: str, plan: Sequence[PlannedSession], trial: Trial) -> RunRecord:
    asking = Asking(ONE_TOKEN, SESSION_TIMEOUT_S)
    target = Target([address], "measured", trial.shape, asking, metrics_urls=())
    return await replay(plan, target)


def _simulated(machine: Machine, way: Way, trial: Trial, asked: Sequence[Task]) -> RunRecord:
    run = play_trace(machine, way, asked, trial.shape)
    return replace(run, system="simulated")


def _compare(trial: Trial, measured: RunRecord, simulated: RunRecord, front_s: float) -> list[str]:
    failed = [each.error for each in measured.sessions if each.error]
    if failed:
        raise SystemExit(f"{len(failed)} sessions failed, the first with: {failed[0]}")
    print(
        f"\n{trial.shape}, {len(measured.sessions)} sessions, load {trial.load:g}, {trial.policy}; "
        f"way to the engine and back {1000 * front_s:.1f} ms; "
        f"late by {max(each.lateness_s for each in measured.sessions):.3f} s at most\n"
        f"tokens computed: {_computed(measured):,} measured, {_computed(simulated):,} simulated\n"
    )
    rows, missed = list[list[str]](), list[str]()
    for percent in PERCENTILES:
        there, here = _percentile(measured, percent), _percentile(simulated, percent)
        is_far = percent in CHECKED and abs(here / there - 1) > TOLERANCE
        ratio = f"{here / there:.2f}{'*' * is_far}"
        rows.append([f"P{percent}", f"{there:.3f} s", f"{here:.3f} s", ratio])
        missed += [f"{trial.shape} P{percent}"] * is_far
    print(markdown(Table(["TTFT from the seal", "measured", "simulated", "ratio"], rows)))
    return missed


def _computed(run: RunRecord) -> int:
    return summarize(run).tokens_by_kind["computed"] or 0


def _percentile(run: RunRecord, percent: float) -> float:
    return float(np.percentile(latencies(run, "ttft"), percent))
