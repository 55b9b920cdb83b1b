"""`python -m tools.dashboards.pictures`: every dashboard as an image, of what a Prometheus has recorded."""

from __future__ import annotations

import argparse
from pathlib import Path

from stream2llm.serving.system.clock import SystemClock
from tools.dashboards.draw import draw
from tools.dashboards.files import DASHBOARDS
from tools.dashboards.prometheus import Prometheus, TimeRange, filled_in

# Points of a line. Matplotlib leaves out those that change nothing where there are 128 or more.
_NUM_POINTS = 200


def write_pictures(server: Prometheus, begin_s: float, end_s: float, folder: Path) -> list[Path]:
    """Writes an SVG for each dashboard, of that time in seconds since the epoch; returns the files."""
    over = TimeRange(begin_s, end_s, max(1.0, (end_s - begin_s) / _NUM_POINTS))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for board in DASHBOARDS:
        path = folder / f"{board.uid.replace('stream2llm', 'dashboard')}.svg"
        path.write_bytes(draw(board, lambda expr: server.query_range(filled_in(expr), over), over))
        written.append(path)
    return written


def main() -> None:
    """Reads the command line, and draws."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.dashboards.pictures", description=__doc__
    )
    parser.add_argument("--prometheus", default="127.0.0.1:9090", help="host:port, plain text")
    parser.add_argument("--last-s", type=float, default=600.0, help="seconds to show")
    parser.add_argument("--end-s", type=float, help="until when, since the epoch; by default now")
    parser.add_argument("--output", type=Path, default=Path("docs/figures"), help="a folder")
    options = parser.parse_args()
    end_s = SystemClock().wall_s() if options.end_s is None else options.end_s
    server = Prometheus(options.prometheus)
    for path in write_pictures(server, end_s - options.last_s, end_s, options.output):
        print(f"written: {path}")


if __name__ == "__main__":
    main()
