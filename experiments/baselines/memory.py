"""How much KV memory the engines of a shape get. Pure.

Under pressure: a third of what open sessions know at the peak of that cell. Without:
all of that, which is several times what the other cells need.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.baselines.plays import Play, context_length

BLOCK_SIZE = 32
# The longest published prompt at our scale, and its answer.
MAX_MODEL_LEN = 16_384
PRESSURE_SHARE = 1 / 3
# vLLM keeps one block for itself.
NULL_BLOCKS = 1


def peak_open_tokens(played: Sequence[Play]) -> int:
    """Most tokens that open sessions know at one moment; each is open until its seal."""
    moves: list[tuple[float, int]] = []
    for play in played:
        known = 0
        for number, change in enumerate(play.changes, 1):
            now = context_length(play.changes[:number])
            moves.append((play.session.arrival_s + change.at_s, now - known))
            known = now
        moves.append((play.session.arrival_s + play.seal_at_s, -known))
    # At one moment what comes counts before what goes.
    moves.sort(key=lambda move: (move[0], -move[1]))
    open_tokens = peak = 0
    for _, change_tokens in moves:
        open_tokens += change_tokens
        peak = max(peak, open_tokens)
    return peak


def num_kv_blocks(pressed: Sequence[Play], longest_tokens: int, *, scarce: bool) -> int:
    """Blocks for the pressure cell: a third of its open tokens; or, with room, for all of them.

    Never fewer than the longest prompt of any cell takes, and one more for its answer.
    """
    share = PRESSURE_SHARE if scarce else 1
    wanted = round(share * peak_open_tokens(pressed))
    return max(-(-wanted // BLOCK_SIZE), -(-longest_tokens // BLOCK_SIZE) + 1) + NULL_BLOCKS


def max_prompt_tokens(num_blocks: int, of_model: int) -> int:
    """What an engine may be told as its longest context: it refuses more than its memory holds."""
    return min(of_model, (num_blocks - NULL_BLOCKS) * BLOCK_SIZE)
