"""What the driver hears of its cluster: the status, and what happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from stream2llm.api.errors import UnavailableError
from stream2llm.cluster.controller_calls import ANSWER_TIMEOUT_S, ControllerCalls
from stream2llm.serving.system.clock import SystemClock

Report = Callable[[str], None]


class ControllerWatch:
    """Follows one controller, over its restarts."""

    def __init__(self, calls: ControllerCalls, log_dir: str) -> None:
        self._calls = calls
        self._log_dir = log_dir

    def status(self) -> dict[str, Any]:
        """Returns what /status shows."""
        try:
            status: dict[str, Any] = self._calls.ask("status", timeout_s=ANSWER_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError as error:
            raise UnavailableError(
                f"the controller gave no answer for {ANSWER_TIMEOUT_S:.0f} s (logs: {self._log_dir})",
                reason="CONTROLLER_LOST",
            ) from error
        return status

    def wait_change(self, seen: int, timeout_s: float | None = None) -> dict[str, Any]:
        """See `Cluster.wait_change`."""
        status: dict[str, Any] = self._calls.ask("watch", seen, timeout_s=timeout_s)
        return status

    def wait_ready(self, timeout_s: float, report: Report | None = None) -> None:
        """See `Cluster.wait_ready`."""
        clock = SystemClock()
        deadline_s = clock.monotonic_s() + timeout_s
        status = self.status()
        seen = 0
        while not status["ready"]:
            _raise_if_given_up(status)
            try:
                status = self.wait_change(seen, max(0.01, deadline_s - clock.monotonic_s()))
            except ray.exceptions.GetTimeoutError as error:
                raise self._not_ready(status, timeout_s) from error
            seen = _report_events(status, report)

    def _not_ready(self, status: dict[str, Any], timeout_s: float) -> UnavailableError:
        late = [f"{r['name']} ({r['phase']}) {r['reason']}" for r in status["replicas"]
                if r["phase"] != "ready"]  # fmt: skip
        return UnavailableError(
            f"the cluster is not ready after {timeout_s:.0f} s; missing: {', '.join(late)};"
            f" logs: {self._log_dir}",
            reason="NOT_READY",
        )

    def follow(self, report: Report) -> None:
        """See `Cluster.follow`."""
        seen = self.status()["num_events"]

        def is_away() -> None:
            report("controller has died: sessions go on; Ray starts it again")

        while True:
            status = self._calls.ask("watch", seen, on_away=is_away)
            seen = _report_events(status, report)


def _raise_if_given_up(status: dict[str, Any]) -> None:
    lost = [r for r in status["replicas"] if r["name"] in status["given_up"]]
    if lost:
        reasons = "; ".join(f"{r['name']}: {r['reason']}" for r in lost)
        raise UnavailableError(f"cannot start {reasons}", reason="START_FAILED")


def _report_events(status: dict[str, Any], report: Report | None) -> int:
    for event in status["events"] if report else ():
        assert report is not None
        report(event)
    num_events: int = status["num_events"]
    return num_events
