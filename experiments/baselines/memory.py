"""How much KV memory the engines of a shape get. Pure.

Under pressure: a third of what open sessions know at the peak of that cell. Without:
all of that, which is several times what the other cells need.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.plays import Play
from stream2llm.simulator.work import peak_tokens, tasks

BLOCK_SIZE = 32
# The longest published prompt at our scale, and its answer.
MAX_MODEL_LEN = 16_384
PRESSURE_SHARE = 1 / 3
# vLLM keeps one block for itself.
NULL_BLOCKS = 1


def num_kv_blocks(pressed: Sequence[Play], longest_tokens: int, *, scarce: bool) -> int:
    """Blocks for the pressure cell: a third of its open tokens; or, with room, for all of them.

    Never fewer than the longest prompt of any cell takes, and one more for its answer.
    """
    share = PRESSURE_SHARE if scarce else 1
    wanted = round(share * peak_tokens(tasks(play.session for play in pressed)))
    return max(-(-wanted // BLOCK_SIZE), -(-longest_tokens // BLOCK_SIZE) + 1) + NULL_BLOCKS


def max_prompt_tokens(num_blocks: int, of_model: int) -> int:
    """The engine's longest context: vLLM refuses to start with more than its memory holds."""
    return min(of_model, (num_blocks - NULL_BLOCKS) * BLOCK_SIZE)
