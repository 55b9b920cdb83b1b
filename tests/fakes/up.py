"""`stream2llm up` with fakes in its actors: the entrypoint of the Ray job in the tests."""

from __future__ import annotations

import sys
from pathlib import Path

from stream2llm.cli.up import run, signals_interrupt
from stream2llm.config import load_config
from stream2llm.launch import Factories

FAKES = "tests.fakes.control_plane"
FACTORIES = Factories(f"{FAKES}:FakeRouter", f"{FAKES}:FakeWorker", f"{FAKES}:FakeWorker")

if __name__ == "__main__":
    with signals_interrupt():
        run(load_config(Path(sys.argv[1])), factories=FACTORIES)
