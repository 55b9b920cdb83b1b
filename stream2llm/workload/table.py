"""A table as a value, and its one printer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# A bar that does not end a cell; also inside code, where entities are not replaced.
BAR = "\\|"


class Table(NamedTuple):
    """Titles and rows of text; the first `num_left` columns are not numbers."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_left: int = 1


def markdown(table: Table) -> str:
    """The table as Markdown text; a bar in a cell stays a bar."""
    rule = ["---"] * table.num_left + ["--:"] * (len(table.titles) - table.num_left)
    rows = [table.titles, rule, *table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in rows)
