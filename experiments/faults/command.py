"""Random faults on a live cluster under load: sessions served and failed, and what a fault costs.

Two routers, two prefill and two decode workers on this machine (a small random Llama in
float32, each model in a process of its own), and the crawler's and the vector search's
sessions. At every interval one process of the cluster, drawn anew (an actor, an EngineCore, a
rank, a router, the controller), is killed, or stopped for up to forty seconds. Restarted answers, and as many
others, are compared with those of a cluster that is left alone. The seed decides load and
faults; how they meet depends on the machine.

Limits on restarts, of sessions and of workers, are set so high that they never end anything:
they are for faults that a session causes, and these it does not.
"""

from __future__ import annotations

import asyncio
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.faults.load import sessions
from experiments.faults.plan import faults
from experiments.faults.report import missed, outcome, tables
from experiments.faults.run import compare, play
from experiments.lab_cluster import lab_cluster
from stream2llm.client import SamplingParameters, SessionRecovery
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.workload.replay.session import Asking

# Also of one start, on a busy machine.
READY_TIMEOUT_S = 1800.0
MAX_MODEL_LEN = 4096
# For a whole session, with the time in which all workers of a role are away.
SESSION_TIMEOUT_S = 900.0
# A limit that nothing reaches.
NEVER = 1_000_000


def add_options(parser: ArgumentParser) -> None:
    """The duration, the interval of faults and the load."""
    parser.add_argument("--minutes", type=float, default=60.0, help="in which sessions arrive")
    parser.add_argument("--every-s", type=float, default=20.0, help="between two faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.15, help="sessions a second, of each shape")
    parser.add_argument("--answer-tokens", type=int, default=48)
    parser.add_argument("--compare", type=int, default=40, help="answers, restarted ones first")
    parser.add_argument(
        "--no-ranks",
        action="store_true",
        help="EngineCore has the model: fewer processes to start, and to strike",
    )
    parser.add_argument("--json", type=Path, help="a file for the figures")


def main(args: Namespace) -> Sequence[str]:
    """Runs it, prints the tables, returns what was wanted and is not so."""
    duration_s, longest = 60 * args.minutes, MAX_MODEL_LEN - args.answer_tokens
    asked = sessions(args.seed, duration_s, args.rate, longest)
    planned = faults(args.seed, duration_s, args.every_s)
    sampling = SamplingParameters(max_tokens=args.answer_tokens, temperature=0.0, ignore_eos=True)
    recovery = SessionRecovery(max_restarts=NEVER, max_wait_s=SESSION_TIMEOUT_S)
    asking = Asking(sampling, SESSION_TIMEOUT_S, recover=recovery)
    with Cluster.start(_config(2, has_ranks=not args.no_ranks)) as cluster:
        cluster.wait_ready(READY_TIMEOUT_S)
        run = asyncio.run(play(cluster, asked, planned, asking))
    with Cluster.start(_config(1, has_ranks=not args.no_ranks)) as alone:
        alone.wait_ready(READY_TIMEOUT_S)
        check = asyncio.run(compare(alone, asked, run, sampling, args.compare))
    found = outcome(run, check)
    print(tables(found))
    if args.json:
        args.json.write_text(json.dumps(asdict(found), indent=1))
    return missed(found)


def _config(replicas: int, *, has_ranks: bool) -> ClusterConfig:
    executor = {"distributed_executor_backend": "mp"} if has_ranks else {}
    role = {"replicas": replicas, "start_timeout_s": READY_TIMEOUT_S}
    return lab_cluster(
        "experiments.faults",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=32,
        preset="sensitive",
        engine={"dtype": "float32", **executor},
        prefill=role,
        decode=role,
        router={
            "replicas": replicas,
            "port": 0,
            "recovery": {
                "max_restarts": NEVER,
                "max_engine_deaths": NEVER,
                "max_wait_s": SESSION_TIMEOUT_S,
            },
        },
        controller={"http_port": 0, "max_start_failures": NEVER},
    )
