"""The Ray that a cluster runs on: one that it starts and ends, or one that it joins and leaves."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import ray

from stream2llm.cluster import ray_auth, ray_runtime, ray_sessions
from stream2llm.cluster.config import ClusterConfig
from stream2llm.serving.system.processes import kill_owned, owner_mark

_log = logging.getLogger(__name__)


class ClusterRay:
    """This process's connection to it."""

    def __init__(self, config: ClusterConfig, cluster_id: str, *, is_own: bool) -> None:
        self.is_own = is_own
        self.log_dir = ""
        # From then on there may be something to end.
        self.is_connected = False
        self._config = config
        self._cluster_id = cluster_id
        # Descriptor of the locked folder of a Ray of our own.
        self._session_lock: int | None = None

    def start(self) -> None:
        """Starts or joins it; everything that it causes here carries the cluster's mark."""
        self.is_connected = True
        mark = owner_mark(self._cluster_id, "ray", 1)
        self.log_dir = ray_runtime.connect(self._config, self._cluster_id, mark)
        if self.is_own:
            self._session_lock = ray_sessions.hold(Path(self.log_dir).parent)

    def connected(self, log_dir: str) -> None:
        """This process has joined it already."""
        self.is_connected = True
        self.log_dir = log_dir

    @property
    def token_file(self) -> Path | None:
        """The file with the token of a Ray that we started; None for a joined one."""
        has_token = self.is_own and self._config.ray.auth_mode == "token"
        return ray_auth.token_file(self._cluster_id) if has_token else None

    def end(self, *, has_controller: bool) -> None:
        """Kills what is left of the cluster; ends a Ray of our own, leaves a joined one."""
        # In our own, ray.shutdown ends actors too; without a controller there are none.
        if not self.is_own and has_controller and ray.is_initialized():
            ray_runtime.kill_actors_of(self._config.ray.namespace, self._cluster_id)
        ray_runtime.disconnect(self._cluster_id if self.is_own else "")
        left = kill_owned(f"{self._cluster_id}/")
        if left:
            _log.warning("killed_leftovers processes=%s", left)

    def release(self) -> None:
        """Lets the folder of a Ray of our own be removed; may be called again."""
        if self._session_lock is not None:
            os.close(self._session_lock)
            self._session_lock = None
