"""Checks of what carries KV and of the way to the cluster's ports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stream2llm.api.loopback import is_loopback
from stream2llm.cli.doctor.facts import Finding, Level, Machine, Network
from stream2llm.cluster.config import ClusterConfig

TRANSPORTS, DEVICES = "UCX_TLS", "UCX_NET_DEVICES"
# UCX's names of transports over RDMA, without what follows an underscore (rc_mlx5, dc_x).
_RDMA = frozenset({"ib", "rc", "ud", "dc"})
_NOT = "^"


def check_kv_network(machine: Machine, config: ClusterConfig) -> Iterator[Finding]:
    """What UCX may use, by its variables and the devices of the machine, for each role."""
    network = machine.network
    if network is None:
        return
    sections = [each for each in config.worker_sections if each[0] != "mixed"]
    roles = [(role, part) for role, part in sections if not is_loopback(part.host)]
    for role, part in roles:
        yield _of_role(role, {**network.variables, **part.env}, network)


def _of_role(role: str, variables: Mapping[str, str], network: Network) -> Finding:
    transports, devices = _names(variables.get(TRANSPORTS)), _names(variables.get(DEVICES))
    missing = _missing(devices, network)
    if missing:
        there = ", ".join((*network.devices, *network.rdma))
        text = f"{role}: {DEVICES} names {', '.join(missing)}; this machine has {there}"
        return _problem(text, f"correct {DEVICES} in {role}.env or in the node's environment")
    if not _allows_rdma(transports) and not _allows(transports, "tcp"):
        text = f"{role}: {TRANSPORTS}={','.join(transports)} has no transport between machines"
        return _problem(text, f"add tcp or rc to {TRANSPORTS} in {role}.env, or leave it out")
    if network.rdma and not _uses_rdma(transports, devices, network):
        why = f"{TRANSPORTS}={','.join(transports)}"
        if _allows_rdma(transports):
            why = f"{DEVICES}={','.join(devices)}"
        text = f"{role}: {', '.join(network.rdma)} active, but {why} leaves KV to TCP alone"
        advice = (
            f"add rc to {TRANSPORTS} and the device to {DEVICES} in {role}.env, or leave both out"
        )
        return Finding(Level.WARNING, "KV network", text, advice)
    if not network.rdma and not _allows(transports, "tcp"):
        text = f"{role}: {TRANSPORTS}={','.join(transports)}, and no RDMA device has an active port"
        return _problem(text, f"add tcp to {TRANSPORTS} in {role}.env, or bring the device up")
    used = network.rdma if network.rdma else tuple(d for d in network.devices if d != "lo")
    used = tuple(name for name in used if _allows(devices, name))
    kind = "RDMA" if network.rdma else "TCP"
    return Finding(Level.OK, "KV network", f"{role}: {kind} over {', '.join(used) or 'loopback'}")


def _problem(text: str, advice: str) -> Finding:
    return Finding(Level.PROBLEM, "KV network", text, advice)


def _names(value: str | None) -> tuple[str, ...]:
    """The names of a variable of UCX; empty for one that is not set or means all."""
    names = tuple(each.strip() for each in (value or "").split(",") if each.strip())
    return () if "all" in names else names


def _allows(names: tuple[str, ...], name: str) -> bool:
    """Whether a list of UCX's allows a name; one that begins with ^ lists what it forbids."""
    if not names:
        return True
    is_forbidding = names[0].startswith(_NOT)
    return (name in (each.removeprefix(_NOT) for each in names)) is not is_forbidding


def _allows_rdma(transports: tuple[str, ...]) -> bool:
    if not transports:
        return True
    named = {each.removeprefix(_NOT).partition("_")[0] for each in transports} & _RDMA
    if transports[0].startswith(_NOT):
        return "ib" not in named and not _RDMA - {"ib"} <= named
    return bool(named)


def _uses_rdma(transports: tuple[str, ...], devices: tuple[str, ...], network: Network) -> bool:
    return _allows_rdma(transports) and any(_allows(devices, port) for port in network.rdma)


def _missing(devices: tuple[str, ...], network: Network) -> list[str]:
    """What is asked for by name and is not there."""
    if devices and devices[0].startswith(_NOT):
        return []
    return [name for name in devices if name not in (*network.devices, *network.rdma)]


def check_reached(machine: Machine, _config: ClusterConfig) -> Iterator[Finding]:
    """The ports that the cluster says it listens on accept connections from this machine."""
    ports = machine.ports
    if ports is None:
        return
    for name in ports.unreached:
        advice = (
            "open the port between the nodes (firewall, network policy), or let its part listen on"
            " an address that they reach (host)"
        )
        yield Finding(Level.PROBLEM, "ports", f"no connection to {name}", advice)
    if not ports.unreached:
        yield Finding(Level.OK, "ports", f"{ports.num_tried} of the cluster accept connections")
