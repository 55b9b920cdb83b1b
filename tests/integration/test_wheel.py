"""The wheel, installed as a user of the client does: into an empty environment, from the index."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile

import pytest

from tests.router_ring import Ring, a_ring
from tests.tiny_model import make_tiny_model
from tests.wheels import ROOT, environment_with, pip_of, run

pytestmark = pytest.mark.slow

PACKAGES = {"stream2llm", "router", "prefill_worker", "decode_worker", "cost_profiles"}
CLIENT = """
import sys
from stream2llm.client import SamplingParameters, connect_sync

sampling = SamplingParameters(max_tokens=6, temperature=0)
with connect_sync(sys.argv[1]) as client, client.session(sampling=sampling) as session:
    session.append("the quick ", "brown ")
    session.append("fox ")
    print(*session.answer(suffix="jumps").token_ids)
"""


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and what it brings without an extra."""
    return environment_with(tmp_path_factory.mktemp("environment"), str(wheel))


def test_the_wheel_has_the_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        files = {PurePosixPath(name) for name in archive.namelist()}
    (metadata,) = {path.parts[0] for path in files} - PACKAGES
    assert metadata.endswith(".dist-info")
    shipped = {str(path) for path in files if path.suffix != ".py" and path.parts[0] != metadata}
    profiles = {
        f"cost_profiles/data/{path.name}" for path in ROOT.glob("cost_profiles/data/*.json")
    }
    assert profiles
    assert shipped >= profiles | {
        "stream2llm/py.typed",
        "stream2llm/api/v1/inference_pb2.pyi",
        "stream2llm/cluster/local-cpu.yaml",
    }
    modules = {str(path) for path in files if path.suffix == ".py"}
    assert modules == {
        str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")
    }


def test_the_base_brings_no_server_and_no_engine(base: Path) -> None:
    listed = json.loads(run(*pip_of(base), "list", "--format=json"))
    names = {each["name"].lower() for each in listed}
    assert "grpcio" in names
    assert not names & {"ray", "transformers", "torch", "numpy", "aiohttp", "prometheus-client"}
    assert len(names) < 20, names


async def test_a_session_streams_from_the_base_to_a_router(base: Path, tmp_path: Path) -> None:
    async with a_ring(make_tiny_model(tmp_path)) as ring:
        address = ring.address.grpc_address
        printed = await asyncio.to_thread(run, base / "python", "-c", CLIENT, address, cwd=tmp_path)
        assert list(map(int, printed.split())) == expected(
            ring, "the quick ", "brown ", "fox ", "jumps"
        )


async def test_the_commands_of_a_client_run_on_the_base(base: Path, tmp_path: Path) -> None:
    document = tmp_path / "document.txt"
    document.write_text("brown fox")
    program = base / "stream2llm"
    assert "generate" in run(program, "--help", cwd=tmp_path)
    assert "--controller" in run(program, "status", "--help", cwd=tmp_path)
    async with a_ring(make_tiny_model(tmp_path / "model")) as ring:
        address = ring.address.grpc_address
        options = ("--address", address, "--prefix", "the ", "--max-tokens", "6", "--quiet")
        command: tuple[Any, ...] = (program, "generate", "-q", "jumps?", *options, document)
        printed = await asyncio.to_thread(run, *command, cwd=tmp_path)
        answer = ring.decode_text(expected(ring, "the ", "brown fox", "\n\njumps?\n"))
        assert printed.rstrip("\n") == answer.rstrip("\n")


def expected(ring: Ring, *texts: str) -> list[int]:
    """The answer of the ring's model to these parts of a prompt."""
    return ring.brain.answer([token for text in texts for token in ring.encode(text)], 6)
