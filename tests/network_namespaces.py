"""Machines with addresses of their own on this one: namespaces that a bridge connects.

Each has its own network, processes, host name, /tmp and /dev/shm, so that nothing but
the network leads from one to another: no socket file, no shared memory, no signal.
They see this machine's files; `SHARED` is a folder that all of them have in common.
The bridge is in a namespace too. Nothing is left of a machine once its first process has
ended, which happens when the process that made it ends, in whatever way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

SHARED = Path("/srv")
_TOOLS = ("ip", "unshare", "nsenter", "setpriv")
_DEVICE = "eth0"
# The kernel reaps what a machine's first process inherits, where that ignores SIGCHLD.
_FIRST_PROCESS = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); signal.pause()"
_BEGIN = (
    # sysfs, because it shows the network of who has mounted it.
    'set -e; mount --bind "$1" /srv; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /tmp;'
    ' mount -t tmpfs tmpfs /dev/shm; hostname "$2"; echo "127.0.0.1 localhost" >/tmp/hosts;'
    ' echo "$3 $2" >>/tmp/hosts; mount --bind /tmp/hosts /etc/hosts; ip link set lo up;'
    ' echo up; exec "$4" -c "$5"'
)


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of a network; its processes end with it."""

    name: str
    address: str
    process: subprocess.Popen[str]
    # The first process, by the number that it has outside.
    pid: int

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Returns the command line that runs `arguments` there."""
        return ["nsenter", f"--target={self.pid}", "--all", "--", *arguments]

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command there to its end; the caller looks at its status."""
        return subprocess.run(
            self.command(arguments), env=environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a command there; its output is to be read from `stdout`."""
        return subprocess.Popen(
            self.command(arguments), env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def received_bytes(self) -> int:
        """Bytes that have arrived there from other machines since it was made."""
        ended = self.run(["cat", f"/sys/class/net/{_DEVICE}/statistics/rx_bytes"])
        return int(ended.stdout)

    def unplug(self) -> None:
        """Cuts it off: whatever is sent there or from there is lost, without an answer."""
        ended = self.run(["ip", "link", "set", _DEVICE, "down"])
        assert ended.returncode == 0, ended.stdout

    def end(self) -> None:
        """Kills all its processes; may be called again."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Network:
    """Makes machines that reach each other, and removes them at the end of the `with` block."""

    def __init__(self, shared: Path) -> None:
        self._shared = shared
        self._num_made = 0
        self._open = ExitStack()
        self._switch: Machine

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._switch = self._begin("switch", "127.0.0.1")
            stack.callback(self._switch.end)
            self._on_switch("ip", "link", "add", "bridge", "type", "bridge")
            self._on_switch("ip", "link", "set", "bridge", "up")
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, name: str, number: int) -> Machine:
        """Makes the machine 10.77.0.`number`."""
        machine = self._begin(name, f"10.77.0.{number}")
        self._open.callback(machine.end)
        self._num_made += 1
        port = f"port{self._num_made}"
        # Both ends come into being where they belong: never in this machine's own network.
        link = ["ip", "link", "add", port, "type", "veth", "peer", "name", _DEVICE]
        self._on_switch(*link, "netns", str(machine.pid))
        self._on_switch("ip", "link", "set", port, "master", "bridge", "up")
        for step in (
            ["ip", "address", "add", f"{machine.address}/24", "dev", _DEVICE],
            ["ip", "link", "set", _DEVICE, "up"],
        ):
            _checked(machine.run(step))
        return machine

    def _begin(self, name: str, address: str) -> Machine:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "unshare", "--net", "--pid", "--mount", "--ipc",
             "--uts", "--fork", "--kill-child", "--mount-proc", "--", "sh", "-c", _BEGIN,
             "begin", str(self._shared), name, address, sys.executable, _FIRST_PROCESS],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        line = process.stdout.readline()
        assert line == "up\n", line + process.stdout.read()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return Machine(name, address, process, int(children))

    def _on_switch(self, *arguments: str) -> None:
        """Runs a command in the switch's network, with the process numbers of outside."""
        command = ["nsenter", f"--target={self._switch.pid}", "--net", "--", *arguments]
        _checked(subprocess.run(command, text=True, capture_output=True, check=False))


def _checked(ended: subprocess.CompletedProcess[str]) -> None:
    assert ended.returncode == 0, f"{ended.args}: {ended.stdout}{ended.stderr or ''}"


def why_not() -> str:
    """Returns why machines cannot be made here; "" where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)}"
    probe = ["unshare", "--net", "--pid", "--fork", "--mount", "--mount-proc", "--", "ip", "link"]
    probe += ["add", "bridge", "type", "bridge"]
    ended = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"no network namespaces here: {ended.stderr.strip()}" if ended.returncode else ""


# For tests that need machines.
_REASON = why_not()
NEEDED = pytest.mark.skipif(bool(_REASON), reason=_REASON or "none")
