"""What is played when, and how long it takes: traces of turns, memory, time left. Pure."""

from __future__ import annotations

from functools import cache

from experiments.baselines.cells import NON_STREAMING, PRESSURE, Cell, Turn
from experiments.baselines.memory import MAX_MODEL_LEN, num_kv_blocks
from experiments.baselines.scaling import TOKEN_SCALE, Pace, at_paper_speed
from experiments.plays import Play, plays
from stream2llm.workload.traces.format import Scale, Shape


def plays_of(turn: Turn, pace: Pace, num_sessions: int, retrieval_factor: float) -> list[Play]:
    """The trace of a turn: equal for all systems but for the token ids.

    `retrieval_factor` makes retrieval shorter than at the paper's ratio to prefill.
    Without sessions that know more at some moment than the model takes; there
    may be one among a hundred whose list was longer before its last update.
    """
    load = turn.cell.load
    played = plays(
        turn.cell.shape,
        num_sessions,
        turn.repetition,
        key=f"{turn.cell.name}/{turn.system}/{turn.repetition}",
        rate=pace.rate(load.share),
        scale=Scale(tokens=TOKEN_SCALE, time=pace.time_scale * retrieval_factor),
        gap_factor=load.gap_factor,
    )
    # One token is the answer's.
    return [play for play in played if play.num_longest_tokens < MAX_MODEL_LEN]


def burst(shape: Shape, count: int, key: str) -> list[Play]:
    """Prompts of a shape that are all there at once."""
    scale = Scale(tokens=TOKEN_SCALE, time=0.0)
    return plays(shape, count, 0, key=key, rate=1e6, scale=scale)


def kv_blocks(
    shape: Shape, num_sessions: int, repetitions: int, retrieval_factor: float, *, scarce: bool
) -> int:
    """KV blocks of each engine, which do not depend on its speed: see `at_paper_speed`."""
    cell, pace = Cell("engine", shape, PRESSURE), at_paper_speed(shape)
    played = [
        plays_of(Turn(cell, NON_STREAMING, number), pace, num_sessions, retrieval_factor)
        for number in range(1, repetitions + 1)
    ]
    longest = max(play.num_longest_tokens for each in played for play in each)
    return num_kv_blocks(played[0], longest, scarce=scarce)


@cache
def prefills_of(turn: Turn, num_sessions: int, retrieval_factor: float) -> float:
    """When the last seal of a turn is due, in mean prefills of its shape."""
    pace = at_paper_speed(turn.cell.shape)
    played = plays_of(turn, pace, num_sessions, retrieval_factor)
    return max(each.session.arrival_s + each.seal_at_s for each in played) / pace.prefill_s
