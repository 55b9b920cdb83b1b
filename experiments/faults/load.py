"""The load on the cluster: crawls and vector searches with the published quantiles. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiments.token_sessions import generated, longest_tokens
from stream2llm.workload.replay.plan import PlannedSession
from stream2llm.workload.traces.format import Scale, Shape

# Prompts of some 500 tokens on average; times within a session are the published ones.
SCALE = Scale(tokens=1 / 16)
SHAPES: tuple[Shape, ...] = ("crawler", "anns")


def sessions(seed: int, duration_s: float, rate: float, longest: int) -> tuple[PlannedSession, ...]:
    """Sessions of both shapes, `rate` a second of each, in the order of their arrival.

    Without those that know more than `longest` tokens at some moment.
    """
    found = [each for shape in SHAPES for each in _of_shape(shape, seed, duration_s, rate)]
    fitting = [each for each in found if longest_tokens(each) <= longest]
    return tuple(sorted(fitting, key=lambda each: each.due_s))


def _of_shape(shape: Shape, seed: int, duration_s: float, rate: float) -> Sequence[PlannedSession]:
    count = max(round(rate * duration_s), 1)
    found = generated(shape, count, seed, key=f"{shape}/{seed}", rate=rate, scale=SCALE)
    return [replace(each, session_id=f"{shape}-{each.session_id}") for each in found]
