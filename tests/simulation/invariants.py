"""What has to hold after every run, whatever its faults were."""

from __future__ import annotations

from collections.abc import Iterator

from router.admission import OUT_OF_REACH
from router.server import Router
from stream2llm.client import SessionRecovery
from stream2llm.cluster.rollout import State
from stream2llm.serving.settings.router_spec import RecoveryOptions
from tests.simulation.client import Outcome, Received
from tests.simulation.faults import Fault, Kind
from tests.simulation.hosts import Replica
from tests.simulation.script import Script
from tests.simulation.sessions import Expected
from tests.simulation.worker import ModelWorker
from tests.simulation.world import World

# Reasons that a session may fail with when its cluster has faults.
_OF_LOSSES = frozenset({"WORKER_LOST", "KV_LOST", "NO_PREFILL_WORKER", "NO_DECODE_WORKER"})
_OF_DRAINS = frozenset({"DRAINING"})
_OF_NARROWNESS = frozenset(
    {
        *("QUOTA_OPEN_SESSIONS", "QUOTA_HELD_TOKENS", "QUOTA_TOKENS_PER_MINUTE"),
        *("TOO_MANY_SESSIONS", "SILENT"),
    }
)
# gRPC's own, where a connection breaks or cannot be made, or is too slow for an opening.
_OF_CONNECTIONS = frozenset({"UNAVAILABLE", "CANCELLED", "UNKNOWN", "NOT_OPENED"})
# At one router; and how often, and for how long, the client library looks for another one.
MOST_RESTARTS = RecoveryOptions().max_restarts
MOST_ROUTERS = 1 + SessionRecovery().max_restarts
MAX_WAIT_S = SessionRecovery().max_wait_s


def violations(world: World) -> Iterator[str]:
    """Yields what is wrong when the cluster is quiet."""
    if world.actors.killed_well:
        yield f"killed, though nothing was wrong: {world.actors.killed_well}"
    for client in world.clients:
        yield from _of_session(world, client.outcome)
    yield from _of_cluster(world)
    for replica in world.living():
        hosted = replica.hosted
        found = _of_router(hosted) if isinstance(hosted, Router) else _of_worker(hosted, replica)
        yield from (f"{replica.process.name}: {each}" for each in found)
    if not world.script.faults:
        yield from _of_undisturbed(world)


def leftovers(world: World) -> Iterator[str]:
    """Yields the tasks that run on in processes that were stopped, or killed."""
    for process in world.processes:
        is_stopped = not process.is_alive or process.name.startswith(("router", "session"))
        if is_stopped:
            for task in process.tasks:
                yield f"{process.name} (alive: {process.is_alive}) still runs {task.get_coro()}"


# -- the cluster ------------------------------------------------------------------------


def _of_cluster(world: World) -> Iterator[str]:
    """What runs is what should, and a rolling restart that nothing disturbs replaces all of it."""
    living = {each.process.name: each.incarnation for each in world.living()}
    known = {name: each.incarnation for name, each in world.controller.supervisor.fleet.items()}
    if living != known:
        yield f"{living} run, and the controller knows of {known}"
    rollout = world.controller.rolling.rollout
    if rollout is None or len(world.script.faults) > 1:
        return
    (fault,) = world.script.faults
    if rollout.state not in ((State.DONE, State.STOPPED) if fault.duration_s else (State.DONE,)):
        yield f"the rolling restart is {rollout.state}: {rollout.reason}"
    replaced = {name for name, incarnation in living.items() if incarnation == 2}
    if max(living.values()) > 2 or (rollout.state is State.DONE and replaced != living.keys()):
        yield f"the rolling restart has left {living}"


# -- sessions --------------------------------------------------------------------------


def _of_session(world: World, outcome: Outcome) -> Iterator[str]:
    name = outcome.plan.name
    if outcome.ended_at_s is None and not outcome.has_left:
        yield f"{name} has not ended"
    if outcome.num_accepted > 1:
        yield f"{name} was accepted {outcome.num_accepted} times"
    ways = outcome.has_finished + (outcome.error is not None) + outcome.has_left
    if ways != 1 and not (outcome.has_left and ways == 2):
        yield f"{name} ended {ways} times"
    for answer in outcome.answers:
        yield from _of_answer(world, outcome, answer)
    if outcome.error is not None and not outcome.has_left:
        yield from _of_failure(world, outcome)


def _of_answer(world: World, outcome: Outcome, answer: Received) -> Iterator[str]:
    expected = outcome.plan.expected(world.brain)
    got, name = answer.token_ids, answer.session_id
    if got != expected.token_ids[: len(got)] or not expected.text.startswith(answer.text):
        yield f"{name} got {got} {answer.text!r}, not {expected}"
    if len(answer.finished) > 1:
        yield f"{name} has finished {len(answer.finished)} times"
    for finished in answer.finished:
        if Expected(got, answer.text, finished.reason) != expected:
            yield f"{name} has finished with {got} {answer.text!r} {finished.reason}, not {expected}"
        usage = finished.usage
        counted = (usage.prompt_tokens, usage.completion_tokens)
        num_prompt = 0 if finished.index else len(outcome.plan.prompt)
        if counted != (num_prompt, len(expected.token_ids)):
            yield f"{name} has usage {counted}"
        # What a lost worker did not report any more is not counted.
        computed, done = usage.computed_tokens, _num_computed(world, name)
        if computed > done or (computed < done and not world.script.faults):
            yield f"{name} has usage of {computed} computed tokens, of {done}"
        if finished.restarts > MOST_ROUTERS * (MOST_RESTARTS + 1) - 1:
            yield f"{name} was restarted {finished.restarts} times"


def _num_computed(world: World, session_id: str) -> int:
    """Tokens that all engines together have computed for the session."""
    hosted = (replica.hosted for replica in world.replicas)
    return sum(each.engine.computed[session_id] for each in hosted if isinstance(each, ModelWorker))


def _of_failure(world: World, outcome: Outcome) -> Iterator[str]:
    """A failure needs a cause: more than one fault, or one that the session cannot survive."""
    script, reason, name = world.script, outcome.reason, outcome.plan.name
    if script.is_tight and reason in _OF_NARROWNESS:
        return
    is_refused = reason == OUT_OF_REACH and not outcome.num_accepted
    if is_refused and script.admission == "refuse" and outcome.plan.ttft_slo_ms:
        return
    is_planned = all(each.kind is Kind.ROLLOUT for each in script.faults)
    allowed = set() if is_planned else set(_OF_LOSSES)
    if any(map(_is_of_connection, script.faults)) or script.has(Kind.ROLLOUT):
        allowed |= _OF_CONNECTIONS
    if script.has(Kind.DRAIN) or script.has(Kind.ROLLOUT):
        allowed |= _OF_DRAINS
    if reason not in allowed:
        yield f"{name} has failed with {reason}: {outcome.error!r}"
    if len(script.faults) < 2 and not any(
        _is_fatal(script, each, outcome) for each in script.faults
    ):
        yield f"{name} has failed for one fault: {outcome.error!r}"


def _is_fatal(script: Script, fault: Fault, outcome: Outcome) -> bool:
    """Whether this fault alone is enough for this failure."""
    routers = [name for name in script.roles if script.roles[name] == "router"]
    if fault.kind is Kind.ROLLOUT:
        return _is_fatal_rollout(script, outcome)
    if _is_of_connection(fault):
        outlasts = fault.kind is Kind.PARTITION and fault.duration_s > MAX_WAIT_S
        is_cut_off = outlasts and len(routers) == 1
        return not outcome.is_recoverable or is_cut_off
    # Nothing passes between the only two that KV could pass between.
    is_only_pair = {fault.target, fault.other, *routers} == set(script.roles)
    return fault.kind is Kind.PARTITION and is_only_pair and outcome.reason == "KV_LOST"


def _is_fatal_rollout(script: Script, outcome: Outcome) -> bool:
    """A rolling restart ends sessions of clients that do not recover, as their routers end.

    And a new session finds none while the only router is replaced.
    """
    if outcome.num_accepted:
        return not outcome.is_recoverable
    return list(script.roles.values()).count("router") == 1


def _is_of_connection(fault: Fault) -> bool:
    """Whether it concerns the connection between a client and its router."""
    return fault.target.startswith(("router", "session"))


def _of_undisturbed(world: World) -> Iterator[str]:
    """Without a fault nothing is left to a lease's end, and no session restarts.

    Hand-overs on their way to a router are, when their session ends early there: prefill cannot
    know whether decode has them.
    """
    early = {
        answer.session_id
        for client in world.clients
        for answer in client.outcome.answers
        if not client.outcome.has_finished
    }
    for replica in world.replicas:
        if isinstance(replica.hosted, ModelWorker):
            expired = set(replica.hosted.engine.memory.expired) - early
            if expired:
                yield f"{replica.process.name} has kept blocks of {expired} for a whole lease"
    for client in world.clients:
        if client.outcome.restarts:
            yield f"{client.outcome.plan.name} was restarted without a fault"


# -- what is held ------------------------------------------------------------------------


def _of_router(router: Router) -> Iterator[str]:
    parts = router._parts
    if parts.sessions.by_phase():
        yield f"sessions are open: {parts.sessions.by_phase()}"
    for family in router.registry.collect():
        for sample in family.samples if family.name.endswith("sessions_active") else ():
            if sample.value:
                yield f"a gauge still counts: {sample}"
    for tenant, use in parts.sessions.quotas._uses.items():
        if use.num_open or use.held_tokens:
            yield f"{tenant} holds a quota: {use}"
    for worker in parts.workers:
        if worker.num_sessions or worker.link._num_users:
            yield f"{worker.worker_id} has {worker.num_sessions} sessions"
        stream = worker.link._multiplexed._connection
        if stream is not None and stream._calls:
            yield f"{worker.worker_id} has calls: {stream._calls}"
        if worker.queue._works:
            yield f"{worker.worker_id} has a queue"
        if worker.is_suspect:
            yield f"{worker.worker_id} is suspect"
    if router._background._tasks:
        yield f"tasks outlive their sessions: {router._background._tasks}"


def _of_worker(worker: ModelWorker, replica: Replica) -> Iterator[str]:
    memory = worker.engine.memory
    if memory.sessions:
        yield f"{len(memory.sessions)} sessions hold blocks"
    if memory.kept:
        yield f"hand-overs have no end: {memory.kept}"
    if worker.sessions.num_open:
        yield f"{worker.sessions.num_open} sessions are open"
    if worker.planned is not None and worker.planned.kv_usage:
        yield f"blocks are held: {worker.planned.kv_usage:.0%}"
    if worker.answers is not None and worker.answers.num_free != worker.num_blocks:
        yield f"{worker.answers.num_free} of {worker.num_blocks} blocks are free"
    # One says that its engine has died, one makes the steps, two serve a router's stream.
    num_tasks = 1 + (worker.planned is not None) + 2 * worker.streams.num_streams
    if len(replica.process.tasks) > num_tasks:
        yield f"tasks run on: {[task.get_coro() for task in replica.process.tasks]}"
