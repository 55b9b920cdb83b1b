"""One scheduling policy for all prefill workers: the choice, its HTTP and its command."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import pytest
from typer.testing import Result

from prefill_worker.policy import POLICIES
from stream2llm.api.errors import InvalidRequestError
from stream2llm.cli.policy import policy_lines
from stream2llm.cluster.prefill_policy import PolicyChoice, PolicyState, PrefillPolicy, WorkerPolicy
from stream2llm.cluster.supervision import Phase, Replica
from tests.command_lines import check_failed, cli
from tests.fakes.controller import a_controller
from tests.fakes.prefill_policy import FakeHosts


class Fleet:
    """Two prefill workers, and the policy of both."""

    def __init__(self, *phases: Phase) -> None:
        self.replicas = [
            Replica(f"prefill-{index}", "prefill", phase) for index, phase in enumerate(phases)
        ]
        self.hosts = FakeHosts({replica.name: "fcfs" for replica in self.replicas})
        self.choice = PolicyChoice("fcfs")
        self.policy = PrefillPolicy(self.choice, self.hosts, lambda: self.replicas)


def both() -> Fleet:
    return Fleet(Phase.ADMITTED, Phase.RUNNING)


@pytest.fixture
def fleet() -> Fleet:
    return both()


# -- the choice -------------------------------------------------------------------


async def test_all_workers_that_run_are_switched(fleet: Fleet) -> None:
    state = await fleet.policy.switch("lcas")
    assert state == PolicyState(
        "lcas",
        (WorkerPolicy("prefill-0", "ready", "lcas"), WorkerPolicy("prefill-1", "running", "lcas")),
    )
    assert await fleet.policy.show() == state
    assert fleet.policy.chosen == "lcas"


async def test_who_does_not_confirm_is_named_and_the_choice_stays(fleet: Fleet) -> None:
    fleet.hosts.deaf.add("prefill-0")
    state = await fleet.policy.switch("mcps")
    assert state.errors == ("prefill-0: the scheduler did not confirm",)
    assert fleet.hosts.policies == {"prefill-0": "fcfs", "prefill-1": "mcps"}
    assert fleet.policy.chosen == "mcps"
    assert (await fleet.policy.show()).errors == ("prefill-0: its process has died",)


async def test_a_worker_that_does_not_run_is_not_told() -> None:
    fleet = Fleet(Phase.STARTING, Phase.DEAD)
    state = await fleet.policy.switch("mcps")
    assert [(w.phase, w.policy, w.error) for w in state.workers] == [
        ("starting", "", ""),
        ("dead", "", ""),
    ]
    assert fleet.hosts.told == []


async def test_an_unknown_policy_changes_nothing(fleet: Fleet) -> None:
    with pytest.raises(InvalidRequestError, match=f"'lifo'; there are {', '.join(POLICIES)}"):
        await fleet.policy.switch("lifo")
    assert (fleet.policy.chosen, fleet.hosts.told) == ("fcfs", [])


async def test_a_path_is_known_if_the_configuration_names_it_and_is_never_imported_here() -> None:
    """No module `mine` exists: importing it would fail."""
    fleet = both()
    fleet.choice.import_paths = ("mine.policies:lifo",)
    state = await fleet.policy.switch("mine.policies:lifo")
    assert state.policy == fleet.hosts.policies["prefill-0"] == "mine.policies:lifo"
    with pytest.raises(InvalidRequestError, match=r"'os:system'; there are .*mine\.policies:lifo"):
        await fleet.policy.switch("os:system")


async def test_two_operators_at_once_leave_all_workers_with_one_policy(fleet: Fleet) -> None:
    await asyncio.gather(fleet.policy.switch("lcas"), fleet.policy.switch("mcps"))
    assert set(fleet.hosts.policies.values()) == {fleet.policy.chosen} == {"mcps"}


async def test_a_worker_that_starts_catches_up_however_often_the_choice_changes() -> None:
    choice, told = PolicyChoice("lcas"), []

    async def tell(policy: str) -> None:
        told.append(policy)
        if policy == "lcas":
            choice.name = "mcps"

    await choice.catch_up("fcfs", tell)
    assert told == ["lcas", "mcps"]
    await choice.catch_up("mcps", tell)
    assert told == ["lcas", "mcps"]


# -- HTTP and the command ---------------------------------------------------------


async def command(*args: str) -> Result:
    return await asyncio.to_thread(cli, "policy", *args)


async def test_the_command_shows_and_switches(fleet: Fleet) -> None:
    async with a_controller(policy=fleet.policy) as address:
        shown = await command("--controller", address)
        switched = await command("lcas", "--controller", address)
        as_json = await command("--json", "--controller", address)
    assert (shown.exit_code, shown.stdout) == (0, "prefill-0: fcfs\nprefill-1: fcfs\n")
    assert (switched.exit_code, switched.stdout) == (0, "prefill-0: lcas\nprefill-1: lcas\n")
    worker = {"name": "prefill-1", "phase": "running", "policy": "lcas", "error": "", "failure": ""}
    assert json.loads(as_json.stdout)["policy"] == "lcas"
    assert json.loads(as_json.stdout)["workers"][1] == worker


async def test_the_command_says_what_the_chosen_policy_raised(fleet: Fleet) -> None:
    fleet.choice.import_paths = ("mine:late",)
    await fleet.policy.switch("mine:late")
    fleet.hosts.policies["prefill-0"] = "srpf"
    fleet.hosts.failures["prefill-0"] = "mine:late raised KeyError: 'x'\nat once"
    async with a_controller(policy=fleet.policy) as address:
        shown = await command("--controller", address)
        as_json = await command("--json", "--controller", address)
    assert shown.stdout.splitlines() == [
        "prefill-0: srpf, instead of the chosen mine:late:"
        " mine:late raised KeyError: 'x'\\nat once",
        "prefill-1: mine:late",
    ]
    failures = [each["failure"] for each in json.loads(as_json.stdout)["workers"]]
    assert failures == ["mine:late raised KeyError: 'x'\nat once", ""]


async def test_the_command_says_what_a_worker_that_starts_will_do() -> None:
    async with a_controller(policy=Fleet(Phase.ADMITTED, Phase.STARTING).policy) as address:
        switched = await command("mcps", "--controller", address)
    assert switched.exit_code == 0
    assert "prefill-1: starting, will follow mcps" in switched.stdout


async def test_the_command_fails_when_a_worker_did_not_confirm(fleet: Fleet) -> None:
    fleet.hosts.deaf.add("prefill-1")
    async with a_controller(policy=fleet.policy) as address:
        result = await command("mcps", "--controller", address)
    assert result.exit_code == 4
    assert result.stdout == "prefill-0: mcps\nprefill-1: unknown\n"
    wanted = "1 of 2 prefill workers did not confirm mcps: prefill-1: the scheduler did not confirm"
    assert wanted in result.stderr


async def test_the_command_names_the_policies_when_there_is_no_such_one(fleet: Fleet) -> None:
    async with a_controller(policy=fleet.policy) as address:
        result = await command("lifo", "--controller", address)
    check_failed(result, 3, f"'lifo'; there are {', '.join(POLICIES)} [UNKNOWN_POLICY]")


async def test_the_command_fails_when_nobody_answers() -> None:
    result = await command("--controller", "127.0.0.1:1")
    check_failed(result, 4, "no answer from a controller at 127.0.0.1:1")


async def test_a_worker_that_follows_another_policy_is_said_to(fleet: Fleet) -> None:
    fleet.hosts.policies["prefill-0"] = "srpf"
    state = asdict(await fleet.policy.show())
    first, second = policy_lines(state).splitlines()
    assert first.startswith("prefill-0: srpf, instead of the chosen fcfs: the worker's log")
    assert second == "prefill-1: fcfs"
