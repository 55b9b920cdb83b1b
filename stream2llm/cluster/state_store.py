"""Saves a controller's state where its successor finds it: in the key-value store of Ray's GCS.

The store lasts as long as Ray does, and with Redis behind the GCS longer than that.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Protocol

from ray.experimental import internal_kv

from stream2llm.cluster.adoption import SavedState
from stream2llm.cluster.rollout import Rollout
from stream2llm.cluster.supervision import Replica
from stream2llm.serving.settings.launch import GatewayStarted, RouterStarted
from stream2llm.serving.settings.worker_spec import WorkerAddress

_log = logging.getLogger(__name__)
_NAMESPACE = "stream2llm"
_AGAIN_AFTER_S = 1.0
# What is saved: a state whose classes had other fields would be read into the wrong ones.
_SHAPE = tuple(
    (each.__name__, *(field.name for field in fields(each)))
    for each in (SavedState, Replica, Rollout, WorkerAddress, RouterStarted, GatewayStarted)
)


class KeyValues(Protocol):
    """Where bytes are kept by key. All methods block, and raise while the store is away."""

    def get(self, key: str) -> bytes | None:
        """Returns a value, None without one."""

    def put(self, key: str, value: bytes) -> None:
        """Sets a value."""

    def delete(self, key: str) -> None:
        """Removes a value, if there is one."""


class GcsKeyValues:
    """The store of the GCS, which everything that Ray runs can read."""

    def get(self, key: str) -> bytes | None:
        """Returns a value, None without one."""
        value: Any = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
        return None if value is None else bytes(value)

    def put(self, key: str, value: bytes) -> None:
        """Sets a value."""
        internal_kv._internal_kv_put(key, value, namespace=_NAMESPACE)

    def delete(self, key: str) -> None:
        """Removes a value, if there is one."""
        internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def state_key(cluster_id: str) -> str:
    """The key of a cluster's state."""
    return f"controller-state/{cluster_id}"


class StateStore:
    """Saves the newest state after each change, one write at a time."""

    def __init__(self, cluster_id: str, read: Callable[[], SavedState], values: KeyValues) -> None:
        """`read` returns the state to save."""
        self._key = state_key(cluster_id)
        self._read = read
        self._values = values
        self._changed = asyncio.Event()

    async def load(self) -> SavedState | None:
        """Returns what an earlier controller has saved; None without one, or of another version."""
        value = await asyncio.to_thread(self._values.get, self._key)
        if value is None:
            return None
        try:
            shape, state = pickle.loads(value)
        except Exception:  # pickle raises whatever a changed class does
            _log.exception("saved_state_unreadable")
            return None
        if shape != _SHAPE:
            _log.warning("saved_state_of_another_version")
            return None
        assert isinstance(state, SavedState), "it is of this shape"
        return state

    def changed(self) -> None:
        """The state is to be saved; returns at once."""
        self._changed.set()

    async def save(self) -> None:
        """Returns when the present state is saved; raises what the store does."""
        value = pickle.dumps((_SHAPE, self._read()))
        await asyncio.to_thread(self._values.put, self._key, value)

    async def run(self) -> None:
        """Saves changes until it is cancelled, also after a time without the store."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self.save()
            except Exception as error:  # the GCS is away; Ray raises various types
                _log.warning("state_not_saved error=%r", error)
                self._changed.set()
                await asyncio.sleep(_AGAIN_AFTER_S)

    async def delete(self) -> None:
        """Forgets the state: the cluster ends."""
        await asyncio.to_thread(self._values.delete, self._key)
