"""Decides what the controller does next, from desired and actual replicas.

Pure: no Ray, no clock, no I/O. A fleet is a plain mapping of frozen replicas; every
event (`events`) returns a new one, from which `planning` says what to do. Life cycle of a
replica:

                     WAITING
                        ^ no room | room
                        |         v
    MISSING -create-> STARTING -started-> RUNNING -admitted-> ADMITTED
       ^                  |                  |                   |
       |                  v                  v                   v
       |                DEAD <---- start failed, connect failed, died, drained
       '----cleaned---- CLEANING -cleaned, failed too often-> GIVEN_UP
                         | a process of it does not end: DEAD, cleaned again later
                         | cleaned after a drain that was to remove it: STOPPED

WAITING has an actor that Ray cannot place at present; that is no failure, and lasts until
a node has room for it.

GIVEN_UP is created once more after a pause that doubles each time, and at once when an
operator requests it; STOPPED only by that request. From RUNNING and ADMITTED a drain leads
to DRAINING: the process still answers and keeps its sessions, but routers do not use it.

A running decode worker is connected with every running prefill worker. A worker is
admitted once it is connected with all admitted workers of the other role, so each pair
that a router can choose has shaken hands. A mixed worker needs no other one. Admission
resets the count of failed starts.
"""

from __future__ import annotations

from stream2llm.cluster.supervision.blame import (
    Evidence,
    blamed_for_failed_connection,
)
from stream2llm.cluster.supervision.events import (
    admitted,
    begun,
    cleaned,
    connected,
    connection_failed,
    died,
    drained,
    draining,
    failed,
    not_cleaned,
    retried,
    started,
    waits_for_room,
)
from stream2llm.cluster.supervision.fleet import (
    WORKER_ROLES,
    Fleet,
    Phase,
    Replica,
    Role,
    given_up,
    is_ready,
    new_fleet,
    view_draining,
    view_members,
    view_routers,
    with_extra,
    without,
)
from stream2llm.cluster.supervision.planning import (
    Action,
    Clean,
    Connect,
    Create,
    next_due_s,
    plan,
)

__all__ = [
    "Evidence",
    "blamed_for_failed_connection",
    "admitted",
    "begun",
    "cleaned",
    "connected",
    "connection_failed",
    "died",
    "drained",
    "draining",
    "failed",
    "not_cleaned",
    "retried",
    "started",
    "waits_for_room",
    "WORKER_ROLES",
    "Fleet",
    "Phase",
    "Replica",
    "Role",
    "given_up",
    "is_ready",
    "new_fleet",
    "view_draining",
    "view_members",
    "view_routers",
    "with_extra",
    "without",
    "Action",
    "Clean",
    "Connect",
    "Create",
    "next_due_s",
    "plan",
]
