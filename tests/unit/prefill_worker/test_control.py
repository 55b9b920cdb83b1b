"""The control channel against an engine in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.v1.engine.exceptions import EngineDeadError

from prefill_worker.control import CONTROL_REQUEST_ID, open_control_channel
from prefill_worker.policy import POLICIES
from prefill_worker.report import SchedulerCommand, SchedulerCounters, SchedulerReport
from prefill_worker.session_state import WIRE_KEY
from stream2llm.api.errors import InternalError, InvalidRequestError, UnavailableError
from stream2llm.engine.output_stream import OutputStream


@dataclass
class Sent:
    """A request on its way to the engine."""

    request_id: str
    params: SamplingParams

    @property
    def command(self) -> SchedulerCommand:
        command = SchedulerCommand.from_wire((self.params.extra_args or {})[WIRE_KEY])
        assert command is not None
        return command


class FakeEngine:
    """A scheduler that obeys, unless a test holds it back."""

    def __init__(self) -> None:
        self.commands: list[SchedulerCommand] = []
        self.policy = "fcfs"
        self.answers = True
        self.obeys = True
        self.has_come = asyncio.Event()
        self._stream = OutputStream()

    async def build_request(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        cache_salt: str = "",
    ) -> Sent:
        assert prompt_token_ids, "vLLM refuses an empty prompt"
        return Sent(request_id, params)

    async def submit(self, request: Sent) -> OutputStream:
        assert not self.commands, "the stream is registered once"
        await self.send(request)
        return self._stream

    async def send(self, request: Sent) -> None:
        assert request.request_id == CONTROL_REQUEST_ID
        command = request.command
        self.commands.append(command)
        self.has_come.set()
        if self.obeys:
            self.policy = command.set_policy or self.policy
        if self.answers:
            self.report(last_command=command.number)

    def report(self, **fields: Any) -> None:
        defaults = {"last_command": len(self.commands), "policy": self.policy}
        report = SchedulerReport(counters=SchedulerCounters(), **defaults | fields)
        self.put({WIRE_KEY: report.to_wire()})

    def put(self, params: dict[str, Any], *, finished: bool = False) -> None:
        output = RequestOutput(
            request_id=CONTROL_REQUEST_ID,
            prompt=None,
            prompt_token_ids=[0],
            prompt_logprobs=None,
            outputs=[],
            finished=finished,
            kv_transfer_params=params,
        )
        self._stream.put(output)

    def die(self) -> None:
        self._stream.put(EngineDeadError())


def ignore(_report: SchedulerReport) -> None:
    """For tests of something else."""


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


async def test_every_report_is_told_and_the_newest_kept() -> None:
    engine, told = FakeEngine(), list[SchedulerReport]()
    async with open_control_channel(engine, told.append) as channel:
        assert engine.commands == [SchedulerCommand(1, None)]
        engine.report(num_sessions_idle=1)
        engine.report(num_sessions_idle=2)
        await channel.set_policy("fcfs")
        assert [report.num_sessions_idle for report in told] == [0, 1, 2, 0]
        assert channel.newest_report == told[-1]


async def test_a_policy_is_set_when_the_scheduler_has_confirmed_it(engine: FakeEngine) -> None:
    async with open_control_channel(engine, ignore) as channel:
        engine.answers = False
        engine.has_come.clear()
        switching = asyncio.create_task(channel.set_policy("lcas"))
        await engine.has_come.wait()
        engine.report(last_command=1, policy="fcfs")  # of a step before the command
        for _ in range(5):
            await asyncio.sleep(0)
        assert not switching.done()
        engine.report(last_command=2)
        await switching
        assert channel.newest_report.policy == "lcas"


async def test_several_switches_at_once_come_one_after_the_other(engine: FakeEngine) -> None:
    async with open_control_channel(engine, ignore) as channel:
        names = ["lcas", "mcps", "default", "fcfs"]
        await asyncio.gather(*map(channel.set_policy, names))
    assert engine.commands[1:] == [SchedulerCommand(n, name) for n, name in enumerate(names, 2)]


async def test_an_unknown_policy_is_refused_with_those_that_there_are(engine: FakeEngine) -> None:
    async with open_control_channel(engine, ignore) as channel:
        with pytest.raises(InvalidRequestError, match=f"'lifo'; there are {', '.join(POLICIES)}"):
            await channel.set_policy("lifo")
    assert len(engine.commands) == 1


async def test_a_scheduler_that_does_not_obey_is_reported(engine: FakeEngine) -> None:
    async with open_control_channel(engine, ignore) as channel:
        engine.obeys = False
        with pytest.raises(InternalError, match="set to mcps but follows fcfs"):
            await channel.set_policy("mcps")


async def test_a_scheduler_that_does_not_answer_is_not_awaited_for_ever(engine: FakeEngine) -> None:
    async with open_control_channel(engine, ignore, confirm_timeout_s=0.05) as channel:
        engine.answers = False
        with pytest.raises(UnavailableError, match=r"command 2 \(policy mcps\) within 0\.05 s"):
            await channel.set_policy("mcps")
        engine.answers = True
        await channel.set_policy("lcas")  # a late one does no harm


async def test_a_scheduler_without_the_channel_fails_the_start(engine: FakeEngine) -> None:
    engine.answers = False
    with pytest.raises(UnavailableError, match="command 1"):
        async with open_control_channel(engine, ignore, confirm_timeout_s=0.05):
            raise AssertionError("it is not open")


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (FakeEngine.die, UnavailableError, "engine died"),
        (lambda engine: engine.put({}, finished=True), InternalError, "invalid report: {}"),
        (lambda engine: engine.put({WIRE_KEY: {"report": {}}}), InternalError, "missing required field `last_command`"),
    ],
)  # fmt: skip
async def test_when_the_channel_ends_whoever_waits_is_told(
    end: Callable[[FakeEngine], None], error: type[Exception], message: str
) -> None:
    engine = FakeEngine()
    async with open_control_channel(engine, ignore) as channel:
        engine.answers = False
        engine.has_come.clear()
        switching = asyncio.create_task(channel.set_policy("mcps"))
        await engine.has_come.wait()
        end(engine)
        for _ in range(2):  # later calls, too
            with pytest.raises(error, match=message):
                await switching
            switching = asyncio.create_task(channel.set_policy("lcas"))
        with pytest.raises(error, match=message):
            await switching


async def test_a_recorder_that_fails_ends_the_channel_loudly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = FakeEngine()

    def record(report: SchedulerReport) -> None:
        if report.last_command == 2:
            raise RuntimeError("no such label")

    async with open_control_channel(engine, record) as channel:
        with pytest.raises(InternalError, match="no such label"):
            await channel.set_policy("mcps")
    assert "control_channel_broke" in caplog.text


async def test_closing_ends_its_task_and_whoever_waits(engine: FakeEngine) -> None:
    before = asyncio.all_tasks()
    async with open_control_channel(engine, ignore) as channel:
        engine.answers = False
        engine.has_come.clear()
        switching = asyncio.create_task(channel.set_policy("mcps"))
        await engine.has_come.wait()
    with pytest.raises(UnavailableError, match="stopping"):
        await switching
    assert asyncio.all_tasks() == before
