"""The trace and the KV blocks of each run, and the time that is left for them. Pure.

KV memory of the engines of a shape, under pressure: a third of what open sessions know at
the peak of that cell. Without: all that is open at the peak of that cell or of the one with
bursts, whichever is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from experiments.baselines.cells import BURSTS, NON_STREAMING, PRESSURE, Cell, Turn
from experiments.baselines.scaling import TOKEN_SCALE, Pace, at_paper_speed
from experiments.token_sessions import generated, longest_tokens, task_of
from stream2llm.simulator.work import peak_tokens
from stream2llm.workload.replay.plan import PlannedSession
from stream2llm.workload.traces.arrivals import Phases, Poisson
from stream2llm.workload.traces.format import Scale, Shape

BLOCK_SIZE = 32
# The longest published prompt at our scale, and its answer.
MAX_MODEL_LEN = 16_384
PRESSURE_SHARE = 1 / 3
# vLLM keeps one block for itself.
NULL_BLOCKS = 1


def num_kv_blocks(pressed: Sequence[PlannedSession], longest_tokens: int, *, scarce: bool) -> int:
    """Blocks for the pressure cell: a third of its open tokens; or, with room, for all of them.

    Never fewer than the longest prompt of any cell takes, and one more for its answer.
    """
    share = PRESSURE_SHARE if scarce else 1
    wanted = round(share * peak_tokens(map(task_of, pressed)))
    return max(-(-wanted // BLOCK_SIZE), -(-longest_tokens // BLOCK_SIZE) + 1) + NULL_BLOCKS


def max_prompt_tokens(num_blocks: int, of_model: int) -> int:
    """The engine's longest context: vLLM refuses to start with more than its memory holds."""
    return min(of_model, (num_blocks - NULL_BLOCKS) * BLOCK_SIZE)


def sessions_of(
    turn: Turn, pace: Pace, num_sessions: int, retrieval_factor: float
) -> list[PlannedSession]:
    """The trace of a turn: equal for all systems but for the token ids.

    `retrieval_factor` makes retrieval shorter than at the paper's ratio to prefill.
    Without sessions that know more at some moment than the model takes; there
    may be one among a hundred whose list was longer before its last update.
    """
    load = turn.cell.load
    found = generated(
        turn.cell.shape,
        num_sessions,
        turn.repetition,
        key=f"{turn.cell.name}/{turn.system}/{turn.repetition}",
        rate=pace.rate(load.share),
        scale=Scale(tokens=TOKEN_SCALE, time=pace.time_scale * retrieval_factor),
        gap_factor=load.gap_factor,
        # As many arrivals in a phase as at the paper's speed.
        process=Phases(mean_s=Phases().mean_s * pace.time_scale) if load.bursts else Poisson(),
    )
    # One token is the answer's.
    return [each for each in found if longest_tokens(each) < MAX_MODEL_LEN]


def burst(shape: Shape, count: int, key: str) -> list[PlannedSession]:
    """Prompts of a shape that are all there at once."""
    scale = Scale(tokens=TOKEN_SCALE, time=0.0)
    return generated(shape, count, 0, key=key, rate=1e6, scale=scale)


def kv_blocks(
    shape: Shape, num_sessions: int, repetitions: int, retrieval_factor: float, *, scarce: bool
) -> int:
    """KV blocks of each engine, which do not depend on its speed: see `at_paper_speed`."""
    pace = at_paper_speed(shape)
    by_load = [
        [
            sessions_of(Turn(cell, NON_STREAMING, number), pace, num_sessions, retrieval_factor)
            for number in range(1, repetitions + 1)
        ]
        for cell in (Cell("engine", shape, load) for load in (PRESSURE, BURSTS))
    ]
    longest = max(longest_tokens(each) for runs in by_load for run in runs for each in run)
    if scarce:
        return num_kv_blocks(by_load[0][0], longest, scarce=True)
    return max(num_kv_blocks(runs[0], longest, scarce=False) for runs in by_load)


@cache
def prefills_of(turn: Turn, num_sessions: int, retrieval_factor: float) -> float:
    """When the last seal of a turn is due, in mean prefills of its shape."""
    pace = at_paper_speed(turn.cell.shape)
    played = sessions_of(turn, pace, num_sessions, retrieval_factor)
    return max(each.seal_due_s for each in played) / pace.prefill_s
