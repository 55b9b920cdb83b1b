"""`python -m experiments` prints the table of experiments; with a name it runs one.

A module of the table has `main(args)`, which prints what it found and returns the
bounds that are missed, and `add_options(parser)` where it has options. Exit codes:
0 done; 1 failed, or with `--check` a bound is missed; 2 wrong options; 130 interrupted.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NamedTuple

from stream2llm.api.errors import Stream2LLMError
from stream2llm.workload.table import Table, markdown

INTERRUPTED = 130


class Experiment(NamedTuple):
    """One entry of the table."""

    module: str
    shows: str
    # On two cores.
    minutes: float


EXPERIMENTS: Mapping[str, Experiment] = {
    "baselines": Experiment(
        "baselines.command",
        "stock vLLM and Stream2LLM on the same traces, one after the other",
        130,
    ),
    "paper": Experiment(
        "paper.grid", "the paper's settings simulated, beside the TTFT it published", 1
    ),
    "workload": Experiment(
        "paper.workload_check", "generated traces beside all that is published of the real ones", 2
    ),
    "recordings": Experiment(
        "paper.recordings", "the paper's settings from its own recordings, where there are any", 30
    ),
    "pressure": Experiment(
        "paper.pressed",
        "preemption as published: its numbers and TTFT by mode, theirs and ours",
        20,
    ),
    "policies": Experiment(
        "paper.policies",
        "a policy against the best of fcfs, lcas, mcps in the paper's settings",
        15,
    ),
    "bursts": Experiment(
        "paper.bursts",
        "a policy against fcfs and lcas when sessions arrive in bursts, simulated",
        15,
    ),
    "deadlines": Experiment(
        "deadlines", "answers in time: a policy against fcfs, srpf without deadlines and edf", 70
    ),
    "orderings": Experiment(
        "paper.orderings", "the paper's update-mode, documents as given and in the stable order", 1
    ),
    "policies-figure": Experiment(
        "paper.figures", "TTFT of every policy at the paper's highest loads, drawn", 1
    ),
    "calibrate": Experiment(
        "paper.calibrate", "the simulator's H200, fitted to the paper's non-streaming rows", 60
    ),
    "validate-simulator": Experiment(
        "validate_simulator", "the simulator against a live cluster on this machine", 12
    ),
    "document-orders": Experiment(
        "document_orders", "tokens that updates invalidate, by order and by update model", 1
    ),
    "handover": Experiment(
        "handover", "KV prefetch on a live cluster: what it gains, and what it costs others", 22
    ),
    "handover-network": Experiment(
        "handover_network", "KV prefetch of one question over several networks, simulated", 1
    ),
    "handover-cluster": Experiment(
        "handover_cluster", "KV prefetch on a loaded cluster over several networks, simulated", 2
    ),
    "mixed-pair": Experiment(
        "mixed_pair", "two mixed workers against a prefill and a decode worker, simulated", 4
    ),
    "eviction": Experiment(
        "eviction", "tokens computed again: tail eviction against whole requests", 15
    ),
    "preemption": Experiment(
        "preemption", "recompute, swap or cost on a real engine, over three links to the host", 20
    ),
    "preemption-simulated": Experiment(
        "preemption_simulated", "the same on four devices, simulated from their cost profiles", 5
    ),
    "online-calibration": Experiment(
        "online_calibration", "cost profiles wrong by a factor of five, corrected by an engine", 3
    ),
    "tenants": Experiment(
        "tenants", "a light client beside a heavy one, and four that want too much, simulated", 1
    ),
    "tenants-live": Experiment(
        "tenants_live", "a light client beside a heavy one, and two that want too much, live", 10
    ),
    "faults": Experiment(
        "faults.command", "an hour of random faults under load: sessions served, and delays", 65
    ),
    "recovery-cost": Experiment(
        "recovery_cost", "TTFT and throughput with recovery and without, when nothing fails", 5
    ),
    "planning": Experiment(
        "planning", "seconds to plan a step: the rank index against sorting all sessions", 3
    ),
    "scheduler-cost": Experiment(
        "scheduler_cost", "seconds that the scheduler adds to a step of a real engine", 5
    ),
    "kv-digest": Experiment(
        "kv_digest", "what digests of KV add to prefill and to a read, with and without in turn", 3
    ),
    "tracing-cost": Experiment(
        "tracing_cost", "what traces cost a router: off, at 1 % and of every session", 4
    ),
    "path": Experiment(
        "path.command",
        "CPU of a router by token, event and session, beside relays that do nothing else",
        6,
    ),
    "prefix": Experiment("prefix", "seconds to compare two long token sequences", 0.1),
}


def overview() -> str:
    """The table of experiments, in Markdown."""
    rows = [
        [f"`python -m experiments {name}`", each.shows, f"{each.minutes:g}"]
        for name, each in EXPERIMENTS.items()
    ]
    return markdown(Table(["command", "what it shows", "minutes"], rows, 2))


def main(arguments: Sequence[str]) -> int:
    """Runs the experiment that the first argument names; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    name, *rest = arguments
    if name not in EXPERIMENTS:
        print(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}", file=sys.stderr)
        return 2
    try:
        return run(name, rest)
    except Stream2LLMError as error:
        print(f"{name} failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name} is interrupted", file=sys.stderr)
        return INTERRUPTED


def run(name: str, arguments: Sequence[str]) -> int:
    module = import_module(f"experiments.{EXPERIMENTS[name].module}")
    parser = ArgumentParser(
        prog=f"python -m experiments {name}",
        description=module.__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="fail when a bound is missed")
    if hasattr(module, "add_options"):
        module.add_options(parser)
    args = parser.parse_args(arguments)
    missed = list(module.main(args))
    print("".join(f"missed: {each}\n" for each in missed), end="", flush=True)
    return int(args.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
