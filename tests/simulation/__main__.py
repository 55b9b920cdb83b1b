"""Runs a range of seeds: `python -m tests.simulation --seeds 0-9999 --state FILE`.

One seed alone shows all of its run. With a state file a range is done in pieces: what it has is
left out the next time, and what was found stays in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.simulation.simulate import simulate_seeds

_PIECE = 500


@dataclass
class State:
    """How far a range has come, and what it has found."""

    first: int
    # The next seed.
    upcoming: int
    last: int
    # Reports of the seeds that broke an invariant.
    findings: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Returns 1 when a seed has broken an invariant."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", required=True, help="one, or FIRST-LAST")
    parser.add_argument("--state", type=Path, help="file to go on from, and to save to")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    if not last:
        return _show(int(first))
    state = _loaded(options.state) or State(int(first), int(first), int(last))
    _run(state, options.state)
    print(f"seeds {state.first} to {state.last}: {len(state.findings)} findings")
    return 1 if state.findings else 0


def _show(seed: int) -> int:
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s", stream=sys.stdout)
    report = next(simulate_seeds([seed]))
    print(report)
    return 1 if report.violations else 0


def _run(state: State, path: Path | None) -> None:
    while state.upcoming <= state.last:
        end = min(state.upcoming + _PIECE, state.last + 1)
        for report in simulate_seeds(range(state.upcoming, end)):
            if report.violations:
                state.findings[str(report.script.seed)] = str(report)
                print(report, flush=True)
        state.upcoming = end
        if path is not None:
            path.write_text(json.dumps(asdict(state), indent=1))


def _loaded(path: Path | None) -> State | None:
    if path is None or not path.exists():
        return None
    return State(**json.loads(path.read_text()))


if __name__ == "__main__":
    sys.exit(main())
