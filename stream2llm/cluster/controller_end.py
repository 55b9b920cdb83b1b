"""Ends what a controller supervises, gracefully if possible."""

from __future__ import annotations

import logging
from contextlib import suppress

import ray

from stream2llm.api.errors import Stream2LLMError
from stream2llm.cluster import ray_runtime
from stream2llm.cluster.controller_calls import ControllerCalls
from stream2llm.cluster.ray_hosts import DRAIN_MARGIN_S, GRACEFUL_STOP_S

_log = logging.getLogger(__name__)


def drain(controller: ControllerCalls, sessions_s: float) -> None:
    """Refuses new sessions and waits for the open ones, which have `sessions_s`."""
    try:
        _finish(controller, "drain", sessions_s + 4 * DRAIN_MARGIN_S)
    except (ray.exceptions.RayError, Stream2LLMError) as error:
        _log.warning("no_graceful_drain error=%s", error)


def stop(controller: ControllerCalls) -> None:
    """Ends all its actors and the controller itself, as far as they answer."""
    try:
        _finish(controller, "stop", 4 * GRACEFUL_STOP_S)
    except Exception as error:  # a dead controller, or a dead Ray; the rest is killed
        _log.warning("no_graceful_stop error=%s", error)
    with suppress(ray.exceptions.RayError):
        ray.kill(controller.handle)


def _finish(controller: ControllerCalls, method: str, timeout_s: float) -> None:
    """Waits for a call, but not for one that a dead Ray will never answer.

    A signal to the whole process group (systemd, `timeout`) ends Ray too.
    """
    controller.ask(method, timeout_s=timeout_s, needs=ray_runtime.RAYLET)
