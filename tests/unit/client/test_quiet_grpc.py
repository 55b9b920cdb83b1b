"""Commands and examples are not interrupted by what gRPC's core logs of peers that stop."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# gRPC's core reads its level when it is imported: a level that is set later has no effect.
PROGRAM = """
import os, sys
import {package}
print(os.environ.get("GRPC_VERBOSITY"), "grpc" in sys.modules)
"""


def level_behind(package: str, **own: str) -> list[str]:
    """Returns the level in a process that imports the package, and whether gRPC came with it."""
    environment = {key: os.environ[key] for key in os.environ if not key.startswith("GRPC_")}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(package=package)],
        env={**environment, **own},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return process.stdout.split()


@pytest.mark.parametrize("package", ["stream2llm.cli", "examples"])
def test_its_level_is_set_before_grpc_is_imported(package: str) -> None:
    assert level_behind(package) == ["ERROR", "False"]


def test_a_level_of_one_s_own_stays() -> None:
    assert level_behind("stream2llm.cli", GRPC_VERBOSITY="INFO") == ["INFO", "False"]
