"""One profile to look at: a table for terminals, a figure where matplotlib is installed.

Both compare computing the first n tokens of a session again with copying their
blocks out and back, and mark the size from which copying is cheaper.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from cost_profiles.model import CostModel
from cost_profiles.types import CostProfile
from stream2llm.api.errors import UnsupportedError
from stream2llm.api.extras import not_installed

_LARGEST_TOKENS = 262_144


class Row(NamedTuple):
    """Both costs of evicting the first `num_tokens`."""

    num_tokens: int
    recompute_s: float
    swap_s: float


def rows_of(profile: CostProfile) -> list[Row]:
    """Sizes that double, from one block to beyond the last point."""
    model, rows = CostModel(profile), []
    num_tokens = profile.block_size
    while num_tokens <= _LARGEST_TOKENS:
        rows.append(_row(model, num_tokens))
        num_tokens *= 2
    return rows


def crossings_of(profile: CostProfile) -> list[int]:
    """Sizes in tokens, whole blocks, at which the cheaper way changes."""
    model, rows = CostModel(profile), rows_of(profile)
    return [
        _first_changed(model, before.num_tokens, after.num_tokens)
        for before, after in pairwise(rows)
        if _swap_wins(before) != _swap_wins(after)
    ]


def table(profile: CostProfile) -> str:
    """Plain text, a line for each size and one for each crossing."""
    lines = [
        f"{profile.model.name}, tensor parallel {profile.tensor_parallel_size}, on "
        f"{profile.accelerator.name}; recompute {profile.recompute.provenance.kind}, "
        f"swap {profile.swap_out.provenance.kind}",
        f"{'tokens':>9}  {'recompute':>14}  {'out and back':>14}  cheaper",
    ]
    for row in rows_of(profile):
        winner = "swap" if _swap_wins(row) else "recompute"
        costs = f"{row.recompute_s * 1e3:11.2f} ms  {row.swap_s * 1e3:11.2f} ms"
        lines.append(f"{row.num_tokens:>9}  {costs}  {winner}")
    crossings = crossings_of(profile)
    lines += [f"the cheaper way changes at {num_tokens} tokens" for num_tokens in crossings]
    return "\n".join(lines if crossings else [*lines, "the cheaper way never changes"]) + "\n"


def draw(profile: CostProfile, path: Path) -> None:
    """Writes a figure; the suffix of the path decides the format."""
    pyplot = _pyplot()
    require_format(path)
    rows = rows_of(profile)
    sizes = [row.num_tokens for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.loglog(sizes, [row.recompute_s for row in rows], marker=".", label="recompute")
    axes.loglog(sizes, [row.swap_s for row in rows], marker=".", label="swap out and back")
    for num_tokens in crossings_of(profile):
        label = f"the cheaper way changes at {num_tokens} tokens"
        axes.axvline(num_tokens, linestyle="--", color="grey", label=label)
    axes.set(xlabel="tokens", ylabel="seconds", title=_title(profile))
    axes.legend(title=None if crossings_of(profile) else "the cheaper way never changes")
    figure.savefig(path)
    pyplot.close(figure)


def require_format(path: Path) -> None:
    """Raises UnsupportedError unless matplotlib, which must be there, can write such a file."""
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        text = f"{path}: not a format for figures; there are {', '.join(sorted(formats))}"
        raise UnsupportedError(text, field="--figure")


def _title(profile: CostProfile) -> str:
    kind = profile.recompute.provenance.kind
    size = profile.tensor_parallel_size
    return f"{profile.model.name}, TP {size}, {profile.accelerator.name} ({kind})"


def _pyplot() -> Any:
    """matplotlib without a display; imported here, because only a figure needs it."""
    try:
        import matplotlib
        from matplotlib import pyplot
    except ImportError as error:
        text = f"{not_installed('matplotlib')}; the table needs nothing"
        raise UnsupportedError(text) from error
    matplotlib.use("agg")
    return pyplot


def _row(model: CostModel, num_tokens: int) -> Row:
    num_blocks = -(-num_tokens // model.profile.block_size)
    swap_s = model.swap_out_s(num_blocks) + model.swap_in_s(num_blocks)
    return Row(num_tokens, model.recompute_s(0, num_tokens), swap_s)


def _swap_wins(row: Row) -> bool:
    return row.swap_s < row.recompute_s


def _first_changed(model: CostModel, before: int, after: int) -> int:
    """Halves down to the block at which another way wins than at `before`."""
    size = model.profile.block_size
    low, high = before // size, after // size
    at_low = _swap_wins(_row(model, before))
    while high - low > 1:
        middle = (low + high) // 2
        if _swap_wins(_row(model, middle * size)) == at_low:
            low = middle
        else:
            high = middle
    return high * size
