"""Long simulations in pieces: cells that are played side by side, and a file of what they gave."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

Cell = TypeVar("Cell")
Found = TypeVar("Found")


class KeptFigures:
    """What cells gave so far, as JSON; without a file it is in memory only.

    The file knows cells, not the code that played them: one that is older than a change of
    the scheduler or the simulator has to be deleted.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises ValueError where the file is no JSON."""
        self._path = path
        # By all that a cell says.
        self._found: dict[str, Any] = {}
        if path is not None and path.exists():
            self._found = json.loads(path.read_text())

    def get(self, cell: object) -> Any:
        """What that cell gave; None where it was not played."""
        return self._found.get(repr(cell))

    def add(self, cell: object, figures: Any) -> None:
        """Keeps it, on disk before this returns."""
        self._found[repr(cell)] = figures
        if self._path is not None:
            part = self._path.with_name(f".{self._path.name}.part")
            part.write_text(json.dumps(self._found, indent=0))
            part.replace(self._path)


def played(
    play: Callable[[Cell], Found],
    cells: Sequence[Cell],
    processes: int | None,
    name: Callable[[Cell], str] = str,
) -> Iterator[tuple[Cell, Found]]:
    """Plays each cell and yields it with what it gave, in order; says on stderr how far it is.

    `name` is the cell's there; without `processes` there is one a core.
    """
    with ProcessPoolExecutor(processes or len(os.sched_getaffinity(0))) as pool:
        pairs = zip(cells, pool.map(play, cells), strict=True)
        for number, (cell, found) in enumerate(pairs, 1):
            yield cell, found
            print(f"{number}/{len(cells)} {name(cell)}", file=sys.stderr, flush=True)


def add_run_options(parser: ArgumentParser) -> None:
    """Adds those of every experiment that plays many cells: how many at once, and the file."""
    parser.add_argument("--processes", type=int, help="simulations at once; by default one a core")
    parser.add_argument(
        "--state",
        type=Path,
        help="JSON file with the cells that are done, to go on from and to save to; of this code",
    )
