"""What handing over ahead of the seal would gain on an accelerator and a network, in virtual time.

An 8B model on an H200, one question at a time, in the published shapes, each over
several networks: `handover_cluster` without other sessions that wait for the same
engine and network.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from experiments.handover_cluster import Cell, exposed_s, play
from experiments.handover_plan import sessions
from stream2llm.api.handover import HANDOVER_MODES
from stream2llm.simulator.work import Task, tasks
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.format import Shape

_SHAPES: tuple[Shape, ...] = ("crawler", "anns")
# Between two openings: long enough for the answer to one.
_APART_S = 60.0


def asked_alone(shape: Shape, count: int, num_tokens: int, duration_s: float) -> list[Task]:
    """Questions that never meet."""
    found = sessions(shape, count, num_tokens, duration_s, seed=0)
    apart = _APART_S + duration_s
    return tasks(replace(each, arrival_s=number * apart) for number, each in enumerate(found))


def main(args: Namespace) -> Sequence[str]:
    rows = [
        _cells(shape, num_tokens, gbit, args)
        for shape in _SHAPES
        for num_tokens in args.tokens
        for gbit in args.gbit
    ]
    titles = ["shape", "tokens", "Gbit/s", "at_seal", "streamed", "gain"]
    print(markdown(Table(titles, rows)))
    return ()


def _cells(shape: Shape, num_tokens: int, gbit: float, args: Namespace) -> list[str]:
    asked = asked_alone(shape, args.count, num_tokens, args.seconds)
    at_seal, streamed = (
        median(exposed_s(play(Cell(shape, gbit, mode), asked))) for mode in HANDOVER_MODES
    )
    times = [f"{1e3 * each:.1f} ms" for each in (at_seal, streamed)]
    return [shape, f"{num_tokens:,}", f"{gbit:g}", *times, f"{at_seal / streamed:.1f} x"]


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 4000, 9000, 16_000])
    parser.add_argument("--gbit", type=float, nargs="+", default=[25.0, 100.0, 400.0])
    parser.add_argument("--count", type=int, default=40, help="questions of each kind")
    parser.add_argument("--seconds", type=float, default=6.0, help="that a context takes to come")
