"""`stream2llm status`: every desired router and worker, and why one does not serve.

A router knows the workers that it can use, and the controller's address; the controller
knows the others. If one of the two is gone, the other one is shown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stream2llm.api import codec
from stream2llm.api.address import router_target
from stream2llm.api.call_metadata import CallsWith
from stream2llm.api.credentials import PLAIN, ClientSecurity
from stream2llm.api.errors import Stream2LLMError, UnavailableError
from stream2llm.api.events import RecoveryInfo, ServerInfo
from stream2llm.api.loopback import host_of, is_loopback
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import inference_pb2, inference_pb2_grpc
from stream2llm.cli import security_options as secure
from stream2llm.cli.addresses import (
    CONTROLLER_VARIABLE,
    DEFAULT_CONTROLLER,
    DEFAULT_ROUTER,
    NO_ANSWER,
    Controller,
    RouterOption,
    no_answer,
)
from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.option_groups import expanded
from stream2llm.client.channels import MAX_MESSAGE_BYTES, open_channel
from stream2llm.serving.observability.logs import for_terminal, one_line

# Figures of a tenant that add up over the routers.
_SUMMED = ("num_sessions", "held_tokens", "computed_tokens", "num_refused")


@dataclass(frozen=True, slots=True)
class Found:
    """What was found; at least one of the two is there."""

    router: dict[str, Any] | None
    # The controller's /status.
    controller: dict[str, Any] | None
    # What is missing, and why.
    missing: str = ""
    # What the controller, or what is at its address, answered instead.
    error: Stream2LLMError | None = None


@expanded
def status(
    address: RouterOption = DEFAULT_ROUTER,
    controller: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of the controller; by default the router says where it is.",
            envvar=CONTROLLER_VARIABLE,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for programs instead of tables.")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds to wait for each of the two.")
    ] = 5.0,
    *,
    given: secure.Options,
) -> None:
    """Show the routers and workers of a cluster, open sessions and KV cache use.

    Asks one router over gRPC and the controller over HTTP. What is dead, starting
    or given up is shown with the reason. Exit codes: 0 both answered, whatever
    they say; 3 one of them refuses the credentials, 4 gave no answer (what the
    other one knows is shown).

    Example: stream2llm status

    Example: stream2llm status --json --address 10.0.0.1:50051
    """
    with errors_as_exits():
        security = given.security()
        found = find(address, controller, timeout_s, security)
        if as_json:
            typer.echo(json.dumps(as_dict(found), indent=2))
        else:
            show(found, _console())
        if found.missing:
            raise incomplete(found)


def incomplete(found: Found) -> Stream2LLMError:
    """The error that ends the command: of the class and the reason of what went wrong."""
    if found.error is None:
        return UnavailableError(found.missing, reason=NO_ANSWER)
    return type(found.error)(found.missing, reason=found.error.reason)


def find(
    address: str, controller: str | None, timeout_s: float, security: ClientSecurity = PLAIN
) -> Found:
    """Asks both; raises UnavailableError when neither answers, and what a router refuses with."""

    def ask(controller: str) -> dict[str, Any]:
        return Controller(controller, security, timeout_s).ask("/status", "replicas")

    try:
        router = _ask_router(address, timeout_s, security)
    except UnavailableError as error:
        return _without_router(error, controller, ask)
    where = controller or router["controller_address"]
    if not where:
        return Found(router, None, "this router has not heard of a controller: give --controller")
    if controller is None and is_loopback(host_of(where)) and not is_loopback(host_of(address)):
        return Found(
            router, None, f"the controller listens on {where} of its own machine: give --controller"
        )
    try:
        return Found(router, ask(where))
    except Stream2LLMError as error:
        text = f"{error.message} Workers that are dead or starting are not shown."
        return Found(router, None, text, error)


def _without_router(
    error: UnavailableError, controller: str | None, ask: Callable[[str], dict[str, Any]]
) -> Found:
    try:
        answer = ask(controller or DEFAULT_CONTROLLER)
    except Stream2LLMError:
        raise error from None  # the command is about the router
    return Found(None, answer, error.message)


def _ask_router(address: str, timeout_s: float, security: ClientSecurity) -> dict[str, Any]:
    credentials, tls = security.credentials, security.tls
    router_target(address)
    credentials.require_encryption(address, is_encrypted=tls is not None)
    try:
        with open_channel(address, tls, MAX_MESSAGE_BYTES) as channel:
            calls: Any = CallsWith(channel, credentials.metadata)
            stub = inference_pb2_grpc.StreamingInferenceServiceStub(calls)
            info = stub.GetServerInfo(inference_pb2.GetServerInfoRequest(), timeout=timeout_s)
    except grpc.RpcError as error:
        if (ours := from_rpc_error(error)) is not None:
            raise ours from None
        raise no_answer("router", address, error.details()) from error
    return asdict(codec.decode(ServerInfo, info))


def as_dict(found: Found) -> dict[str, Any]:
    """For --json: the router's fields at the top, the controller's answer under its name."""
    nothing: dict[str, Any] = {"sessions_by_phase": {}, "workers": [], "tenants": []}
    nothing |= {"restarts_by_cause": {}, "recovery": asdict(RecoveryInfo())}
    return {**(found.router or nothing), "controller": found.controller, "missing": found.missing}


@dataclass(frozen=True, slots=True)
class Row:
    """One replica in the table."""

    name: str
    role: str
    state: str
    restarts: str
    sessions: str = ""
    kv: str = ""
    use: str = ""
    metrics: str = ""
    # Why it is not ready, or was not.
    why: str = ""


def rows(found: Found) -> list[Row]:
    """Returns every desired replica; without a controller the workers that the router sees."""
    workers = {w["worker_id"]: w for w in (found.router or {}).get("workers", ())}
    if found.controller is None:
        return [_row(name, w, None) for name, w in sorted(workers.items())]
    replicas = {r["name"]: r for r in found.controller.get("replicas", ())}
    return [_row(name, workers.get(name), replica) for name, replica in replicas.items()]


def _row(name: str, worker: dict[str, Any] | None, replica: dict[str, Any] | None) -> Row:
    replica = replica or {}
    role = (worker or replica).get("role", "")
    load = worker or _load_of(replica)
    more = _load_columns(load) if load.get("num_kv_blocks") is not None else {}
    address = replica.get("address") or worker or {}
    return Row(
        name=name,
        role=role,
        state=_state(worker, replica),
        restarts=str(replica.get("restarts", "")),
        metrics=address.get("metrics_address", ""),
        why=replica.get("reason") or replica.get("last_error") or "",
        **more,
    )


def _state(worker: dict[str, Any] | None, replica: dict[str, Any]) -> str:
    phase = str(replica.get("phase", "")).replace("_", " ")
    if worker is not None and not worker["ready"]:
        return f"{phase}, not usable by the router" if phase == "ready" else phase or "not ready"
    return phase or "ready"


def _load_of(replica: dict[str, Any]) -> dict[str, Any]:
    """Returns the controller's last figures of a worker that this router does not see."""
    load = replica.get("status")
    return load if isinstance(load, dict) and replica.get("phase") in ("running", "ready") else {}


def _load_columns(load: dict[str, Any]) -> dict[str, str]:
    held, total = load["num_kv_blocks_held"], load["num_kv_blocks"]
    return {
        "sessions": str(load["num_sessions"]),
        "kv": f"{held} of {total}",
        "use": f"{held / total if total else 0.0:.0%}",
    }


def _console() -> Console:
    """As wide as the terminal; in a file or a pipe nothing is wrapped."""
    return Console(width=None if sys.stdout.isatty() else 200)


def show(found: Found, console: Console) -> None:
    """Prints the tables."""
    if found.router is not None:
        _line(console, f"{found.router['router_id']}, Stream2LLM {found.router['version']}")
    listed = rows(found)
    console.print(_table(listed))
    for row in listed:
        if row.why:
            when = "" if row.state != "ready" else " (before its last restart)"
            _line(console, one_line(f"{row.name}{when}: {row.why}"))
    if restarts := (found.controller or {}).get("controller_restarts", 0):
        _line(console, f"controller: started again {restarts} times; what lived went on")
    if found.router is not None:
        phases = sorted(found.router["sessions_by_phase"].items())
        listing = ", ".join(f"{n} {phase}" for phase, n in phases if n) or "none"
        _line(console, f"open sessions: {listing}")
        for line in recovery_lines(found.router):
            _line(console, line)
    tenants = use_by_tenant(found)
    if len(tenants) > 1:  # the configuration names some
        console.print(_tenant_table(tenants))


def recovery_lines(router: dict[str, Any]) -> Iterator[str]:
    """What a router's sessions have lost, and what that has cost; nothing where they lost nothing."""
    causes = sorted(router["restarts_by_cause"].items())
    if causes:
        listing = ", ".join(f"{n} {cause}" for cause, n in causes)
        yield f"sessions placed at another worker since the start: {listing}"
    cost = router["recovery"]
    if cost["recomputed_tokens"]:
        yield f"tokens computed again for that: {cost['recomputed_tokens']}"
    if num := cost["num_recovered"]:
        mean_s, longest_s = cost["total_s"] / num, cost["longest_s"]
        yield f"from a loss to the next token: {mean_s:.2f} s on average, {longest_s:.2f} s at most"


def use_by_tenant(found: Found) -> list[dict[str, Any]]:
    """What tenants use of all routers that the controller hears of; else of the one that was asked."""
    replicas = (found.controller or {}).get("replicas", ())
    loads = [_status_of(each) for each in replicas if each.get("role") == "router"]
    lists = [load["tenants"] for load in loads if "tenants" in load]
    lists = lists or [(found.router or {}).get("tenants", ())]
    sums: dict[str, dict[str, Any]] = {}
    for each in (tenant for tenants in lists for tenant in tenants):
        known = sums.setdefault(each["name"], each | dict.fromkeys(_SUMMED, 0))
        known |= {name: known[name] + each[name] for name in _SUMMED}
    return list(sums.values())


def _status_of(replica: dict[str, Any]) -> dict[str, Any]:
    load = replica.get("status")
    return load if isinstance(load, dict) else {}


def _tenant_table(tenants: Sequence[dict[str, Any]]) -> Table:
    """One line for each tenant."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("tenant", no_wrap=True)
    for title in ("sessions", "held tokens", "computed tokens", "refused", "weight", "priority"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in tenants:
        used = (each["num_sessions"], each["held_tokens"], each["computed_tokens"])
        figures = (*used, each["num_refused"], f"{each['weight']:g}", each["priority"])
        table.add_row(*(Text(one_line(str(cell))) for cell in (each["name"], *figures)))
    return table


def _table(listed: list[Row]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("replica", no_wrap=True)
    table.add_column("role", no_wrap=True)
    table.add_column("state")
    for title in ("restarts", "sessions", "KV blocks", "KV use"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("metrics", overflow="fold")
    for row in listed:
        columns = (
            *(row.name, row.role, row.state, row.restarts),
            *(row.sessions, row.kv, row.use, row.metrics),
        )
        table.add_row(*(Text(one_line(column)) for column in columns))
    return table


def _line(console: Console, text: str) -> None:
    console.print(Text(for_terminal(text)), soft_wrap=True)
