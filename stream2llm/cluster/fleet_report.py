"""The fleet as the controller shows it, in plain data: /status, and what the driver watches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stream2llm.cluster import supervision
from stream2llm.cluster.adoption import LastEnd
from stream2llm.cluster.supervisor import Supervisor


def describe_fleet(supervisor: Supervisor, last_ends: Mapping[str, LastEnd]) -> dict[str, Any]:
    """Returns the state of all routers, gateways and workers; `last_ends` is by replica."""
    fleet = supervisor.fleet
    return {
        "ready": supervisor.is_ready,
        "given_up": [replica.name for replica in supervision.given_up(fleet)],
        "view_version": supervisor.view.version,
        "num_events": supervisor.num_events,
        "replicas": [
            _describe(replica, supervisor, last_ends.get(replica.name, LastEnd()))
            for replica in fleet.values()
        ],
    }


def _describe(
    replica: supervision.Replica, supervisor: Supervisor, last_end: LastEnd
) -> dict[str, Any]:
    address = supervisor.addresses.get(replica.name)
    status = supervisor.statuses.get(replica.name)
    return {
        "name": replica.name,
        "role": replica.role,
        "phase": replica.phase.value,
        "incarnation": replica.incarnation,
        "restarts": max(0, replica.incarnation - 1),
        "start_failures": replica.start_failures,
        "reason": replica.missing_room or replica.reason,
        "cause": replica.cause,
        "last_error": last_end.reason,
        "last_cause": last_end.cause,
        "address": None if address is None else asdict(address),
        "status": None if status is None else asdict(status),
    }
