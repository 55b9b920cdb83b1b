"""Ray on machines with addresses of their own, started as docs/bare-metal.md says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream2llm.cluster.ray_auth import write_token
from tests.network_namespaces import SHARED, Machine, Network

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
STREAM2LLM = str(Path(sys.executable).with_name("stream2llm"))
JOBS = "http://127.0.0.1:8265"
GCS_PORT = 6379
# A lost node is noticed in seconds: by default after a minute.
_SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


def documented_environment() -> dict[str, str]:
    """The variables of deploy/ray/ray.env."""
    lines = (ROOT / "deploy/ray/ray.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@dataclass
class Site:
    """Some machines, of which the first runs Ray's head."""

    network: Network
    # One folder of all machines, seen as `SHARED` on each.
    shared: Path
    machines: dict[str, Machine] = field(default_factory=dict)
    # For all commands, beside those of every machine.
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """As after activating the virtual environment, in a home that the machines share."""
        path = f"{Path(sys.executable).parent}:{os.defpath}"
        return {
            "PATH": path,
            "HOME": str(SHARED),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **documented_environment(),
            **_SOON,
            **self.variables,
        }

    def add(self, name: str, number: int) -> Machine:
        """A machine, in the place of one of the same name."""
        self.machines[name] = self.network.add(name, number)
        return self.machines[name]

    def start_ray(self, name: str, *labels: str, cpus: int = 2) -> None:
        """`ray start`; the first machine becomes the head."""
        machine, head = self.machines[name], next(iter(self.machines.values()))
        where = ["--head", f"--port={GCS_PORT}"]
        if machine is not head:
            where = [f"--address={head.address}:{GCS_PORT}"]
        self.run(
            name, RAY, "start", *where, f"--node-ip-address={machine.address}",
            f"--num-cpus={cpus}", f"--labels={','.join(labels)}",
        )  # fmt: skip

    def run(self, name: str, *command: str) -> str:
        """Runs a command on a machine; returns its output."""
        ended = self.machines[name].run(command, self.environment)
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    def start(self, name: str, *command: str) -> subprocess.Popen[str]:
        """Starts a command on a machine."""
        return self.machines[name].start(command, self.environment)

    def python(self, name: str, code: str, *arguments: Any) -> str:
        """Runs Python code with the arguments as JSON in `given`; returns what it prints last."""
        begin = "import json, sys; given = json.loads(sys.argv[1])\n"
        text = self.run(
            name, "env", f"PYTHONPATH={ROOT}", sys.executable, "-c", begin + code,
            json.dumps(arguments),
        )  # fmt: skip
        return text.strip().splitlines()[-1]


@contextmanager
def a_site(shared: Path, numbers: Mapping[str, int]) -> Iterator[Site]:
    """Machines by name, with the token of their Ray in the home that they share."""
    (shared / ".ray").mkdir()
    write_token(shared / ".ray" / "auth_token")
    with Network(shared) as network:
        site = Site(network, shared)
        for name, number in numbers.items():
            site.add(name, number)
        yield site


class Job:
    """A job that was submitted on the head's machine; its log is read line by line."""

    def __init__(self, site: Site, head: str, job_id: str, entrypoint: Sequence[str]) -> None:
        self.lines: list[str] = []
        self._command = [
            RAY, "job", "submit", "--address", JOBS, "--submission-id", job_id,
            "--working-dir", str(ROOT), "--", *entrypoint,
        ]  # fmt: skip
        self._site, self._head = site, head
        self._process = self._submit()

    def _submit(self) -> subprocess.Popen[str]:
        """Again while the head's job agent is still starting."""
        while True:
            self._process = self._site.start(self._head, *self._command)
            try:
                self.until("submitted successfully")
                return self._process
            except AssertionError as error:
                self._process.communicate()
                if "No available agent" not in str(error):
                    raise

    def until(self, text: str) -> str:
        """Reads on to a line with this text, and returns it."""
        for line in self._process.stdout:
            self.lines.append(line.rstrip())
            if text in line:
                return line.rstrip()
        raise AssertionError("\n".join(self.lines))

    def end(self) -> str:
        """Returns the rest of its log when it has ended."""
        return self._process.communicate()[0]

    def close(self) -> None:
        """Ends the command that reads its log; the job ends with its machines."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
