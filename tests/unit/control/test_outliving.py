"""What lets a cluster outlive its controller, and end with its driver: state, lease, folders."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import tempfile
import threading
from pathlib import Path

import pytest

from stream2llm.cluster import ray_sessions
from stream2llm.cluster import supervision as sv
from stream2llm.cluster.adoption import LastEnd, SavedState
from stream2llm.cluster.lease import Lease, LeaseKeeper
from stream2llm.cluster.state_store import StateStore, state_key
from stream2llm.serving.actor.loss import Cause
from stream2llm.serving.system.clock import ManualClock, SystemClock


class FakeKeyValues:
    """A store that may be away."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.num_failures = 0
        self.written = threading.Event()

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        if self.num_failures:
            self.num_failures -= 1
            raise ConnectionError("the GCS is away")
        self.values[key] = value
        self.written.set()

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


def a_state(incarnation: int = 3) -> SavedState:
    replica = sv.Replica("decode-0", "decode", incarnation=incarnation, cause=Cause.HUNG)
    return SavedState({"decode-0": replica}, last_ends={"decode-0": LastEnd("gone", Cause.DIED)})


async def test_a_state_is_found_again_and_forgotten_at_the_end() -> None:
    values = FakeKeyValues()
    store = StateStore("c1", a_state, values)
    assert await store.load() is None
    await store.save()
    assert await StateStore("c1", a_state, values).load() == a_state()
    assert await StateStore("c2", a_state, values).load() is None
    await store.delete()
    assert await store.load() is None


async def test_each_change_is_saved_even_after_a_time_without_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stream2llm.cluster.state_store._AGAIN_AFTER_S", 0.0)
    values = FakeKeyValues()
    values.num_failures = 2
    state = a_state(3)
    store = StateStore("c1", lambda: state, values)
    saving = asyncio.create_task(store.run())
    for incarnation in (4, 5):
        state = a_state(incarnation)
        values.written.clear()
        store.changed()
        assert await asyncio.to_thread(values.written.wait, 10)
        assert await store.load() == state
    saving.cancel()
    await asyncio.wait([saving])


@pytest.mark.parametrize(
    "value",
    [
        b"no pickle",
        pickle.dumps({"another": "version"}),
        pickle.dumps(a_state()),
        pickle.dumps(((("Replica", "name"),), a_state())),  # a class had fewer fields
    ],
)
async def test_what_another_version_has_saved_is_left_aside(value: bytes) -> None:
    values = FakeKeyValues()
    values.put(state_key("c1"), value)
    assert await StateStore("c1", a_state, values).load() is None


async def test_a_lease_lapses_unless_it_is_renewed() -> None:
    clock = ManualClock()
    lease = Lease(60.0, clock.monotonic_s)
    clock.advance(59.0)
    lease.renew()
    lapsed = asyncio.create_task(lease.lapsed())
    await asyncio.sleep(0)
    assert not lapsed.done()
    lapsed.cancel()
    clock.advance(60.0)
    await asyncio.wait_for(lease.lapsed(), 10)


def test_a_driver_renews_until_it_ends() -> None:
    renewed = threading.Semaphore(0)
    keeper = LeaseKeeper(0.01, renewed.release)
    keeper.close()
    keeper = LeaseKeeper(0.01, renewed.release)
    keeper.start()
    assert all(renewed.acquire(timeout=10) for _ in range(3))
    keeper.close()
    keeper.close()
    assert not keeper.is_running


def a_folder(root: Path, day: int) -> Path:
    folder = root / f"session_2026-11-{day:02}_10-00-00_000000_1"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "raylet.out").write_text("x")
    return folder


def test_old_session_folders_are_removed_but_those_in_use_and_the_newest(tmp_path: Path) -> None:
    folders = [a_folder(tmp_path, day) for day in range(1, 9)]
    held = ray_sessions.hold(folders[0])
    for folder in folders[1:7]:
        os.close(ray_sessions.hold(folder))  # its driver has ended
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (tmp_path / "session_latest").symlink_to(folders[7])
    assert set(ray_sessions.prune(tmp_path, kept=2)) == set(folders[1:5])
    # The last one has no lock yet: it may be starting.
    assert {f for f in folders if f.exists()} == {folders[0], *folders[5:]}
    os.close(held)
    clock = ManualClock(wall_s=SystemClock().wall_s() + 2 * 3600)
    assert set(ray_sessions.prune(tmp_path, kept=0, clock=clock)) == {folders[0], *folders[5:]}
    assert elsewhere.exists()


def test_a_folder_without_a_lock_stays_while_a_raylet_listens_in_it() -> None:
    clock = ManualClock(wall_s=SystemClock().wall_s() + 2 * 3600)
    with tempfile.TemporaryDirectory(dir="/tmp") as root:  # short: it holds a socket
        folder = a_folder(Path(root), 1)
        (folder / "sockets").mkdir()
        with socket.socket(socket.AF_UNIX) as raylet:
            raylet.bind(str(folder / "sockets" / "raylet"))
            raylet.listen()
            assert ray_sessions.prune(Path(root), kept=0, clock=clock) == []
        assert ray_sessions.prune(Path(root), kept=0, clock=clock) == [folder]


def test_a_folder_has_one_holder(tmp_path: Path) -> None:
    descriptor = ray_sessions.hold(tmp_path)
    with pytest.raises(BlockingIOError):
        ray_sessions.hold(tmp_path)
    os.close(descriptor)
