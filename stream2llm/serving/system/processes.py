"""Finds and kills processes of ours on this machine, by a mark in their environment.

Each actor is started with STREAM2LLM_OWNER=<cluster>/<replica>/<incarnation>/.
Engine processes inherit it, so a process is known as ours without trusting its
number, which the kernel reuses. SPT_NOENV keeps setproctitle (Ray, vLLM) from
overwriting the memory that /proc/<pid>/environ shows. Linux only.

psutil reads processes; pidfds signal and wait. psutil's wait() would reap those of our
children that other code waits for, and its signals check the number before they use it.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass

import psutil

from stream2llm.serving.system.clock import SystemClock

OWNER_VARIABLE = "STREAM2LLM_OWNER"


@dataclass(frozen=True, slots=True)
class Origin:
    """The part of a cluster that this process is, for its logs and traces."""

    # For instance "prefill-0".
    component: str
    # From 1; the number of processes that this part has had. 0: not supervised.
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class OwnedProcess:
    """A living process that carries an owner mark."""

    pid: int
    owner: str
    command: str


def owner_mark(cluster_id: str, replica: str, incarnation: int) -> str:
    """The mark of one incarnation; each field closed by a slash, so prefixes are exact."""
    return f"{cluster_id}/{replica}/{incarnation}/"


def own_origin(otherwise: str) -> Origin:
    """Reads this process's own mark, which children inherit; without one it is `otherwise`."""
    _, component, incarnation, *_ = (*os.environ.get(OWNER_VARIABLE, "").split("/"), "", "")
    if not component or not incarnation.isdecimal():
        return Origin(otherwise)
    return Origin(component, int(incarnation))


def mark_environment(mark: str) -> dict[str, str]:
    """The variables that mark a process and all its descendants."""
    return {OWNER_VARIABLE: mark, "SPT_NOENV": "1"}


def owned_processes(prefix: str) -> tuple[OwnedProcess, ...]:
    """Living processes on this machine, but for our own, whose mark begins so."""
    found = (_read(pid) for pid in psutil.pids() if pid != os.getpid())
    return tuple(p for p in found if p is not None and p.owner.startswith(prefix))


def kill_owned(
    prefix: str, grace_s: float = 0.0, timeout_s: float = 10.0
) -> tuple[OwnedProcess, ...]:
    """Kills them, waits for their end, repeats until none is left; returns the killed.

    Those that end by themselves within the grace are not killed.
    """
    clock = SystemClock()
    deadline_s = clock.monotonic_s() + grace_s + timeout_s
    _wait_for_end(owned_processes(prefix), clock.monotonic_s() + grace_s)
    killed: dict[int, OwnedProcess] = {}
    while targets := owned_processes(prefix):
        if clock.monotonic_s() > deadline_s:
            raise TimeoutError(f"these processes do not end: {targets}")
        killed.update({p.pid: p for p in targets})
        _wait_for_end(targets, deadline_s, signal.SIGKILL)
    return tuple(killed.values())


def signal_owned(process: OwnedProcess, which: signal.Signals) -> bool:
    """Sends a signal; returns False where the process has ended, and its number may be another's."""
    fd = _open(process)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, which)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def _wait_for_end(
    targets: tuple[OwnedProcess, ...], deadline_s: float, first: signal.Signals | None = None
) -> None:
    """Sends all of them a signal, if one is given, and waits."""
    clock = SystemClock()
    descriptors = [fd for target in targets if (fd := _open(target)) is not None]
    try:
        for fd in descriptors if first is not None else ():
            assert first is not None
            with suppress(ProcessLookupError):  # ended a moment ago, perhaps with one before
                signal.pidfd_send_signal(fd, first)
        for fd in descriptors:  # a pidfd becomes readable when its process has ended
            ending = select.poll()
            ending.register(fd, select.POLLIN)
            ending.poll(1000 * max(0.0, deadline_s - clock.monotonic_s()))
    finally:
        for fd in descriptors:
            os.close(fd)


def _open(target: OwnedProcess) -> int | None:
    """Its pidfd, if the number still means this process."""
    try:
        fd = os.pidfd_open(target.pid)
    except ProcessLookupError:
        return None
    # The descriptor pins the process, so this second look is no race.
    now = _read(target.pid)
    if now is None or now.owner != target.owner:
        os.close(fd)
        return None
    return fd


def _read(pid: int) -> OwnedProcess | None:
    try:
        process = psutil.Process(pid)
        owner = process.environ().get(OWNER_VARIABLE)
        command = " ".join(process.cmdline())
    except (psutil.Error, OSError):  # psutil passes some of the kernel's errors on
        return None  # gone, or another user's
    return None if owner is None else OwnedProcess(pid, owner, command)
