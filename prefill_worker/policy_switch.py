"""Which policy ranks an engine's sessions, and what takes its place when it raises."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prefill_worker.policy import POLICIES, Policy
from prefill_worker.policy_loading import Guard, find_policies
from prefill_worker.session_table import SessionTable
from stream2llm.api.errors import describe
from stream2llm.serving.settings.worker_options import DEFAULT_POLICY

_log = logging.getLogger(__name__)

_STAND_IN = POLICIES[DEFAULT_POLICY]
# Longest part of foreign code's error message in reports.
_MAX_FAILURE_CHARS = 500


class PolicySwitch:
    """The policies that an engine may follow, each in a guard unless it is built in."""

    def __init__(self, import_paths: Iterable[str]) -> None:
        """Raises what `find_policies` raises."""
        self._policies = find_policies(import_paths)
        self._guard = Guard()
        # What the policy raised that was replaced; "" while the chosen one ranks.
        self.failure = ""

    def guarded(self, name: str) -> Policy:
        """The policy to follow from now on; one that is not built in may raise anything."""
        self._guard = Guard()
        policy = self._policies[name]
        return policy if name in POLICIES else self._guard.around(policy, _STAND_IN)

    def set(self, table: SessionTable, name: str) -> None:
        """Ranks all sessions by another policy from the next step on; none is lost."""
        if name not in self._policies:
            # The sender has checked the name; an unknown one is not worth ending the engine.
            _log.error("unknown policy %r; %s stays", name, table.policy.name)
            return
        table.set_policy(self.guarded(name))
        self.failure = ""

    def replace_failed(self, table: SessionTable) -> None:
        """Follows the default from now on, if the policy has raised."""
        error = self._guard.error
        if error is not None:
            failed, stand_in = table.policy.name, _STAND_IN.name
            _log.error("policy_failed policy=%s now=%s", failed, stand_in, exc_info=error)
            self.set(table, stand_in)
            self.failure = f"{failed} raised {describe(error)}"[:_MAX_FAILURE_CHARS]
