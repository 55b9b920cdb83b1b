"""The driver's end of a cluster: starts its host process, switches its policy, ends it."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.baselines.cluster_host import READY_TIMEOUT_S, ClusterHostSpec
from experiments.baselines.engines.process import HostProcess
from experiments.baselines.systems import SystemDiedError

POLICY_TIMEOUT_S = 60.0
# Sessions are drained, and Ray is ended, whose processes are not of the host's group.
STOP_TIMEOUT_S = 120.0


class ClusterLink:
    """One cluster. Build it with `start`, end it with `stop`."""

    def __init__(self, process: HostProcess) -> None:
        self._process = process
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self.router_address = ""
        self.cluster_id = ""
        self.log_dir = ""

    @classmethod
    async def start(cls, spec: ClusterHostSpec, log: Path) -> ClusterLink:
        """Returns when all workers are ready; raises SystemDiedError with the log otherwise."""
        ours, theirs = socket.socketpair()
        with theirs:
            module, argument = "experiments.baselines.cluster_host", json.dumps(asdict(spec))
            link = cls(HostProcess(module, theirs, argument, log))
        link._reader, link._writer = await asyncio.open_connection(sock=ours)
        try:
            ready = await link._answer(READY_TIMEOUT_S)
        except BaseException:
            await link.stop()
            raise
        link.router_address, link.cluster_id = ready["router"], ready["cluster_id"]
        link.log_dir = ready["log_dir"]
        return link

    async def set_policy(self, policy: str) -> None:
        """Returns when all workers follow it; raises SystemDiedError if one does not."""
        self._writer.write(json.dumps({"policy": policy}).encode() + b"\n")
        if errors := (await self._answer(POLICY_TIMEOUT_S))["errors"]:
            raise SystemDiedError(f"the policy was not set: {'; '.join(errors)}")

    async def _answer(self, limit_s: float) -> Any:
        async with asyncio.timeout(limit_s):
            line = await self._reader.readline()
        if not line:
            raise SystemDiedError(self._process.epitaph("a cluster's process ended"))
        return json.loads(line)

    async def stop(self) -> None:
        """Ends the cluster and every process of it; may be called again."""
        self._writer.close()
        await self._process.end(STOP_TIMEOUT_S)
