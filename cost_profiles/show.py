"""Prints one profile as a table: `python -m cost_profiles.show FILE [--figure PATH]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cost_profiles.load import load_profile
from cost_profiles.plot import draw, table
from stream2llm.api.errors import Stream2LLMError


def main(arguments: list[str] | None = None) -> int:
    """Returns exit code 2 for an unusable file, or a figure that cannot be drawn."""
    parser = argparse.ArgumentParser(prog="python -m cost_profiles.show", description=__doc__)
    parser.add_argument("file", type=Path, help="a cost profile")
    parser.add_argument("--figure", type=Path, help="also draw it; the suffix decides the format")
    options = parser.parse_args(arguments)
    try:
        profile = load_profile(options.file)
        print(table(profile), end="")
        if options.figure is not None:
            draw(profile, options.figure)
    except Stream2LLMError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
