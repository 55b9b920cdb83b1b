"""Workers without engines that speak real gRPC, hosted by the actors of a real cluster."""

from __future__ import annotations

from dataclasses import replace

from stream2llm.security.certificates import open_certificates
from stream2llm.serving.settings.worker_spec import WorkerAddress, WorkerSpec
from tests import fake_workers
from tests.fakes import control_plane


class AnsweringWorker(control_plane.FakeWorker):
    """A worker of the control plane's tests, with the services of the router's tests."""

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        certificates = open_certificates(spec.security.tls_files)
        brain = fake_workers.Brain()
        self._served = fake_workers.FakeWorker(
            spec.worker_id, spec.role, brain, certificates=certificates
        )

    async def start(self) -> WorkerAddress:
        started = await super().start()
        served = await self._served.start()
        return replace(served, pids=started.pids, metrics_address=started.metrics_address)

    async def stop(self) -> None:
        await self._served.kill()
        await super().stop()
