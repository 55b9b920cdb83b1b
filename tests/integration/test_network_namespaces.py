"""The machines that tests of several nodes run on: only the network leads from one to another."""

from __future__ import annotations

from pathlib import Path

from tests import network_namespaces
from tests.network_namespaces import Network

pytestmark = network_namespaces.NEEDED

CONNECT = ["bash", "-c", 'timeout 2 bash -c "echo >/dev/tcp/10.77.0.2/99"']


def test_machines_reach_each_other_until_one_is_unplugged(tmp_path: Path) -> None:
    with Network(tmp_path) as network:
        first, second = network.add("first", 1), network.add("second", 2)
        before_bytes = second.received_bytes()
        assert "Connection refused" in first.run(CONNECT).stdout  # by its kernel: it was reached
        assert second.received_bytes() > before_bytes
        second.unplug()
        assert first.run(CONNECT).returncode == 124  # no answer


def test_machines_share_one_folder_and_neither_files_nor_processes(tmp_path: Path) -> None:
    with Network(tmp_path) as network:
        first, second = network.add("first", 1), network.add("second", 2)
        assert first.run(["touch", "/tmp/own", "/dev/shm/own", "/srv/common"]).returncode == 0
        listed = second.run(["ls", "/tmp", "/dev/shm", "/srv"]).stdout.split()
        assert "common" in listed
        assert "own" not in listed
        with first.start(["sleep", "1000"]) as process:
            assert "sleep" not in second.run(["ps", "-e"]).stdout
            first.end()
            assert process.wait(10) != 0
    assert (tmp_path / "common").exists()
