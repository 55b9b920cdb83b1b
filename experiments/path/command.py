"""What a token, an event and a seal cost on a router's core, beside relays that do nothing else.

The router is the production's, and so is its event loop; clients and workers (without engines)
are another process. CPU time of the router's process counts, all threads, so that other load on
the machine matters little. The references run in the same process, in turn: a relay of gRPC
streams that parses nothing, and one with a single stream to the worker for all clients.
"""

from __future__ import annotations

import asyncio
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from experiments.path import measures
from experiments.path.measures import Lab, Open, a_lab, kib_each
from stream2llm.models.store import fetch_default_model
from stream2llm.workload.table import Table, markdown

Measure = Callable[[Lab], Awaitable[float]]


class Scale(NamedTuple):
    """How much is measured."""

    num_rounds: int
    num_steps: int
    num_sessions: int
    # Open at a time, for memory and garbage collections.
    num_open: tuple[int, ...]


class Result(NamedTuple):
    """What was measured."""

    # Microseconds of CPU by measure, of each round.
    cpu_us: Mapping[str, Sequence[float]]
    sessions: Sequence[Open] = ()
    null_streams: Sequence[Open] = ()


FULL = Scale(5, 150, 200, (50, 1500, 10_000))
QUICK = Scale(2, 25, 32, (50, 400))

# The measures.
NULL, MULTIPLEXED, TOKEN = "null", "multiplexed", "token"
IDS, TEXT, BESIDE = "append-ids", "append-text", "append-text-beside"
SESSION, OPEN = "session", "open"
_TITLES = {
    NULL: "a token by the null relay",
    MULTIPLEXED: "a token by the multiplexed null relay",
    TOKEN: f"a token by the router, {measures.NUM_STREAMS} streams",
    IDS: "an append of 300 ids",
    TEXT: "an append of 1,300 characters",
    BESIDE: "beside it, in threads that tokenize",
    SESSION: "open, document of 300 ids, seal, two tokens",
}
# Microseconds that are wanted at most.
_MOST_US = {TOKEN: 40.0, IDS: 250.0, TEXT: 400.0, SESSION: 1300.0}
_MOST_TIMES_MULTIPLEXED = 1.2
_MOST_PAUSE_MS = 10.0
# An open session may take so much more than a null stream.
_MOST_KIB = 16.0


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", nargs="+", choices=(*_TITLES, OPEN), default=(*_TITLES, OPEN))
    parser.add_argument("--rounds", type=int, help="of each measure")
    parser.add_argument("--output", type=Path, default=Path("path.json"), help="a JSON file")


def main(args: Namespace) -> Sequence[str]:
    scale = QUICK if args.quick else FULL
    if args.rounds:
        scale = scale._replace(num_rounds=args.rounds)
    result = asyncio.run(_run(scale, args.only, fetch_default_model()))
    print(f"{markdown(cost_table(result))}\n\n{markdown(open_table(result))}")
    args.output.write_text(json.dumps(_as_json(result), indent=1) + "\n")
    return missed(result)


async def _run(scale: Scale, names: Sequence[str], model_path: Path) -> Result:
    result = Result(await _costs(scale, names, model_path))
    if OPEN not in names:
        return result
    async with a_lab(model_path) as lab:
        sessions = await measures.open_sessions(lab, scale.num_open)
    async with a_lab(model_path) as lab:
        null_streams = await measures.open_null_streams(lab, scale.num_open)
    return result._replace(sessions=sessions, null_streams=null_streams)


async def _costs(
    scale: Scale, names: Sequence[str], model_path: Path
) -> Mapping[str, Sequence[float]]:
    """All measures in turn, round by round: what changes with time changes all of them."""
    chosen = {name: each for name, each in _measures(scale).items() if name in names}
    cpu_us: dict[str, list[float]] = {name: [] for name in chosen}
    if chosen:
        async with a_lab(model_path) as lab:
            for number in range(1 + scale.num_rounds):
                for name, measure in chosen.items():
                    found = await measure(lab)
                    if number:  # the first round warms up
                        cpu_us[name].append(found)
                        print(f"round {number} {name} {found:.0f} us", flush=True)
    return cpu_us


def _measures(scale: Scale) -> Mapping[str, Measure]:
    few = scale.num_sessions // 4
    return {
        NULL: partial(measures.null_token_us, num_steps=scale.num_steps),
        MULTIPLEXED: partial(measures.multiplexed_token_us, num_steps=scale.num_steps),
        TOKEN: partial(measures.token_us, num_steps=scale.num_steps),
        IDS: partial(measures.append_us, num_sessions=few, text=False),
        TEXT: partial(measures.append_us, num_sessions=few, text=True),
        BESIDE: partial(measures.append_us, num_sessions=few, text=True, tokenizing=True),
        SESSION: partial(measures.session_us, num_sessions=scale.num_sessions),
    }


def cost_table(result: Result) -> Table:
    """The medians, and what is wanted."""
    rows = [
        [
            _TITLES[name],
            f"{median(costs):.0f}",
            f"{min(costs):.0f} to {max(costs):.0f}",
            f"{_MOST_US[name]:.0f}" if name in _MOST_US else "",
        ]
        for name, costs in result.cpu_us.items()
    ]
    return Table(["CPU of the router's process", "us, median", "of all rounds", "wanted"], rows)


def open_table(result: Result) -> Table:
    """Memory and garbage collections by the number of open sessions."""
    rows = [
        [
            title,
            f"{each.num_sessions:,}",
            f"{each.rss_kib / 1024:.0f}",
            f"{each.longest_pause_ms:.1f}",
            f"{each.full_collection_ms:.1f}",
        ]
        for title, found in (("sessions", result.sessions), ("null streams", result.null_streams))
        for each in found
    ]
    titles = ["open and idle", "number", "MiB", "longest pause, ms", "a full collection, ms"]
    return Table(titles, rows)


def missed(result: Result) -> list[str]:
    """The bounds that do not hold."""
    medians = {name: median(costs) for name, costs in result.cpu_us.items()}
    bounds = [
        (_TITLES[name], medians[name], most) for name, most in _MOST_US.items() if name in medians
    ]
    if TOKEN in medians and MULTIPLEXED in medians:
        times = medians[TOKEN] / medians[MULTIPLEXED]
        bounds.append(("a token, times the multiplexed null relay", times, _MOST_TIMES_MULTIPLEXED))
    if result.sessions:
        more_kib = kib_each(result.sessions) - kib_each(result.null_streams)
        pause_ms = max(each.longest_pause_ms for each in result.sessions)
        bounds.append(("KiB of an open session beyond a null stream", more_kib, _MOST_KIB))
        bounds.append(("ms of the longest garbage collection", pause_ms, _MOST_PAUSE_MS))
    return [f"{what}: {found:.1f}, wanted {most:g}" for what, found, most in bounds if found > most]


def _as_json(result: Result) -> dict[str, object]:
    opened = {
        name: [each._asdict() for each in found]
        for name, found in (("sessions", result.sessions), ("null_streams", result.null_streams))
    }
    return {"cpu_us": dict(result.cpu_us), **opened}
