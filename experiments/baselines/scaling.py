"""The paper's regime on a smaller engine: how long, how often, how dense. Pure.

What decides how streaming does is not seconds but their ratios: how long
retrieval takes for each second of prefill, and how much of the engine is busy. So
lengths are a fixed share of the published ones, and times within a session are
multiplied with what this engine takes for this shape's mean prompt, for each
second that the paper's engine took. Loads are shares of the measured rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm.workload.traces.format import Shape
from stream2llm.workload.traces.targets import TARGETS

TOKEN_SCALE = 1 / 8
# Llama-3.1-8B on two H200, from the digest of the paper: 8,889 tokens in 0.15 s.
PAPER_TOKENS_PER_S = 8_889 / 0.15
# Its step budgets, 2,048 and 8,192 tokens, at the scale of the lengths.
TOKEN_BUDGET: dict[Shape, int] = {"crawler": 256, "anns": 1024}


@dataclass(frozen=True, slots=True)
class Pace:
    """What a shape's traces are multiplied with on an engine of this speed."""

    shape: Shape
    # Prompt tokens a second, one-shot, on the shape's own prompts.
    tokens_per_s: float

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of a prompt, at the scale used here."""
        return TARGETS[self.shape].statistics["tokens"]["mean"] * TOKEN_SCALE

    @property
    def prefill_s(self) -> float:
        """What a mean prompt takes: the unit in which cells are alike on all engines."""
        return self.mean_tokens / self.tokens_per_s

    @property
    def time_scale(self) -> float:
        """On the offsets within a session."""
        published = TARGETS[self.shape].statistics["tokens"]["mean"]
        return self.prefill_s / (published / PAPER_TOKENS_PER_S)

    def rate(self, load: float) -> float:
        """Sessions a second that keep the engine busy for this share of the time."""
        return load / self.prefill_s


def at_paper_speed(shape: Shape) -> Pace:
    """The pace of an engine that needs no other time scale than 1.

    How many sessions are open at once is the same on every engine, so what
    depends on that alone can be found out before anything is measured.
    """
    return Pace(shape, PAPER_TOKENS_PER_S * TOKEN_SCALE)
