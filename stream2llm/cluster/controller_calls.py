"""Calls of the driver to the controller that outlast the controller's restart.

The controller's methods may all be repeated. A call that was under way when the controller
died fails at once, and is sent to its successor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

import ray

from stream2llm.api.errors import InternalError, Stream2LLMError, UnavailableError
from stream2llm.cluster import ray_runtime
from stream2llm.serving.system.clock import SystemClock

_log = logging.getLogger(__name__)

# How long a controller may be away: Ray starts it again within seconds, on a busy machine or
# after the loss of a node within a minute.
AWAY_LIMIT_S = 180.0
# For calls that the controller answers at once, on a busy machine.
ANSWER_TIMEOUT_S = 120.0
# Between two looks at whether it is back, and at whether Ray itself still runs.
LOOK_INTERVAL_S = 1.0


class ControllerCalls:
    """The controller of one cluster."""

    def __init__(self, handle: Any, log_dir: str) -> None:
        self.handle = handle
        self._log_dir = log_dir
        self._clock = SystemClock()

    def ask(
        self,
        method: str,
        *arguments: Any,
        timeout_s: float | None = None,
        on_away: Callable[[], None] = lambda: None,
        needs: Collection[str] = ray_runtime.NEEDED,
    ) -> Any:
        """Returns what the method does; waits for a controller that is started again.

        Raises GetTimeoutError when the time is over, InternalError (CONTROLLER_LOST) when no
        controller comes back, and UnavailableError (RAY_LOST) when one of the processes `needs`
        of a Ray of our own has ended. Calls `on_away` once when the controller has died.
        """
        deadline_s = None if timeout_s is None else self._clock.monotonic_s() + timeout_s
        away_until_s: float | None = None
        while True:
            try:
                return self._once(method, arguments, deadline_s, needs)
            except ray.exceptions.RayActorError as error:
                now_s = self._clock.monotonic_s()
                if away_until_s is None:
                    away_until_s = now_s + AWAY_LIMIT_S
                    on_away()
                if isinstance(error, ray.exceptions.ActorDiedError) or now_s > away_until_s:
                    raise self._lost(error) from error
                _log.info("controller_away method=%s error=%s", method, error)
                ray_runtime.pause(LOOK_INTERVAL_S)
            except (Stream2LLMError, ray.exceptions.GetTimeoutError):  # the caller handles these
                raise
            except ray.exceptions.RayError as error:
                raise self._lost(error) from error

    def _once(
        self,
        method: str,
        arguments: tuple[Any, ...],
        deadline_s: float | None,
        needs: Collection[str],
    ) -> Any:
        call = getattr(self.handle, method).remote(*arguments)
        while not ray.wait([call], timeout=LOOK_INTERVAL_S)[0]:
            if (lost := ray_runtime.lost_process(needs)) is not None:
                raise UnavailableError(
                    f"the Ray of this cluster has lost its {lost}: no worker can be replaced any"
                    f" more, and Ray ends its processes within a minute (logs: {self._log_dir})",
                    reason="RAY_LOST",
                )
            if deadline_s is not None and self._clock.monotonic_s() > deadline_s:
                raise ray.exceptions.GetTimeoutError(f"no answer to {method}")
        return ray.get(call)

    def _lost(self, error: Exception) -> InternalError:
        return InternalError(
            "the cluster has no controller any more: another command has ended it, or Ray cannot"
            f" start it again: {ray_runtime.first_line(error)} (logs: {self._log_dir})",
            reason="CONTROLLER_LOST",
        )
