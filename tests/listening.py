"""What the processes of a cluster listen on, as the kernel has it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from stream2llm.engine.listening import listening_sockets
from stream2llm.serving.processes import owned_processes


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """One listening TCP socket."""

    host: str
    port: int
    # Whose it is: "<replica>/<incarnation>", or "ray/1" for Ray's own processes.
    owner: str
    process: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port} {self.owner} {self.process}"


def listeners(cluster_id: str) -> list[Listener]:
    """All of them, over IPv4 and IPv6, of every process that carries the cluster's mark.

    And of this process, which has one as a driver of Ray.
    """
    found = [
        Listener(*address, "driver", "this process") for address in listening_sockets([os.getpid()])
    ]
    for process in owned_processes(f"{cluster_id}/"):
        owner = process.owner.removeprefix(f"{cluster_id}/").rstrip("/")
        name = _name_of(process.command)
        found += [Listener(*address, owner, name) for address in listening_sockets([process.pid])]
    return sorted(found)


def _name_of(command: str) -> str:
    """The title a process gave itself, its program's name, or the script that Python runs."""
    words = command.split() or ["?"]
    name = words[0].rpartition("/")[2]
    scripts = [word.rpartition("/")[2] for word in words if word.endswith(".py")]
    return scripts[0] if name.startswith("python") and scripts else name
