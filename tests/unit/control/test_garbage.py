"""What an actor starts with is never looked at again by Python's garbage collector."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.layout import Factories, lay_out
from stream2llm.serving.actor.actor_shell import RouterShell, WorkerShell

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("collector_as_before")]

FAKES = "tests.fakes.control_plane"
FACTORIES = Factories(f"{FAKES}:FakeRouter", f"{FAKES}:FakeWorker", f"{FAKES}:FakeWorker")


@pytest.fixture
def shells(tmp_path: Path) -> dict[str, RouterShell | WorkerShell]:
    """One of each role, as their actors make them."""
    (tmp_path / "config.json").write_text("{}")
    launches = lay_out(ClusterConfig(), tmp_path, {}, FACTORIES)
    kinds = {"router": RouterShell, "prefill": WorkerShell, "decode": WorkerShell}
    return {each.role: kinds[each.role](each, "127.0.0.1") for each in launches}


@pytest.mark.parametrize("role", ["router", "prefill", "decode"])
async def test_a_started_actor_leaves_nothing_old_to_collect(
    shells: dict[str, RouterShell | WorkerShell], role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT",
                 "VLLM_CPU_OMP_THREADS_BIND"):  # fmt: skip
        monkeypatch.setenv(name, "as before")  # the shell prepares its process
    thresholds = gc.get_threshold()
    outcome = await shells[role].start()
    assert outcome.error == ""
    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects()) < 10_000
    assert gc.get_threshold() > thresholds
    await shells[role].stop()
