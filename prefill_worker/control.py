"""The front end's half of the control channel: sends commands, receives reports.

The scheduler runs in another process and receives nothing but requests. So one
request that never ends, the control request, is the channel: each command is a
request with its id, and the reports are its outputs (`report.py` defines both). To
vLLM's front end it is a request whose outputs have no tokens; it counts as one first
token in `vllm:time_to_first_token_seconds`, and each report as one
`vllm:inter_token_latency_seconds`, which mean nothing on a prefill worker anyway.
The channel ends with its engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from vllm import SamplingParams

from prefill_worker.policy_loading import require_policy
from prefill_worker.report import SchedulerCommand, SchedulerReport
from prefill_worker.session_state import WIRE_KEY
from stream2llm.api.errors import InternalError, Stream2LLMError, UnavailableError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.engine.output_stream import OutputStream
from stream2llm.engine.vllm_sampling import to_vllm

_log = logging.getLogger(__name__)

CONTROL_REQUEST_ID = "stream2llm-control"
# The scheduler answers between two steps, and a step takes seconds at most.
CONFIRM_TIMEOUT_S = 30.0
# A request needs a token; this one is never computed.
_NO_PROMPT = [0]


class ControlledEngine(Protocol):
    """The methods of `Engine` that the channel uses."""

    async def build_request(
        self, request_id: str, prompt_token_ids: list[int], params: SamplingParams
    ) -> Any:
        """Builds a request; raises when the engine is dead."""

    async def submit(self, request: Any) -> OutputStream:
        """Starts a request and returns its outputs."""

    async def send(self, request: Any) -> None:
        """Sends a request whose outputs go to the stream of an earlier one."""


class ControlChannel:
    """A channel, open for the duration of its `open_control_channel` block."""

    def __init__(
        self,
        engine: ControlledEngine,
        on_report: Callable[[SchedulerReport], None],
        confirm_timeout_s: float,
        import_paths: tuple[str, ...],
    ) -> None:
        self._engine = engine
        self._on_report = on_report
        self._confirm_timeout_s = confirm_timeout_s
        # Policies beside the built-in ones.
        self._import_paths = import_paths
        self._num_commands = 0
        self._report: SchedulerReport | None = None
        self._failure: Stream2LLMError | None = None
        # Set by every report and by the end of the channel.
        self._news = asyncio.Event()
        # One command at a time, so that a report's confirmation is unambiguous.
        self._commanding = asyncio.Lock()

    @property
    def newest_report(self) -> SchedulerReport:
        """The newest report of the scheduler."""
        assert self._report is not None, "an open channel has had its first report"
        return self._report

    async def set_policy(self, policy: str) -> None:
        """Sets the scheduler's policy; returns when the scheduler follows it.

        Raises InvalidRequestError for an unknown policy, UnavailableError when the
        engine is dead or does not confirm in time.
        """
        name = require_policy(policy, self._import_paths)
        async with self._commanding:
            command = self._next_command(name)
            await self._engine.send(await self._request(command))
            report = await self._confirmed(command)
        if report.policy != name:
            raise InternalError(f"the scheduler was set to {name} but follows {report.policy}")
        _log.info("policy_set policy=%s", name)

    async def open(self) -> OutputStream:
        """Sends the first command; the caller must `follow` the stream from then on."""
        return await self._engine.submit(await self._request(self._next_command(None)))

    async def first_report(self) -> None:
        """Waits for the scheduler's answer to the first command."""
        await self._confirmed(SchedulerCommand(number=1))

    async def follow(self, stream: OutputStream) -> None:
        """Takes reports until the engine dies; never raises, but fails all waiting calls."""
        try:
            async for output in stream:
                self._take((output.kv_transfer_params or {}).get(WIRE_KEY, {}))
            self.fail(InternalError("the engine ended the control request"))
        except UnavailableError as error:  # the engine is dead; its watcher reports that too
            self.fail(error)
        except Exception as error:
            _log.exception("control_channel_broke")
            self.fail(InternalError(f"the control channel broke: {error!r}"))

    def fail(self, error: Stream2LLMError) -> None:
        """Fails all waiting and later calls; the first error stays."""
        self._failure = self._failure or error
        self._news.set()

    def _take(self, raw: dict[str, Any]) -> None:
        report = SchedulerReport.from_wire(raw)
        if report is None:
            raise InternalError(f"the scheduler sent an invalid report: {raw!r}")
        self._report = report
        self._on_report(report)
        self._news.set()

    def _next_command(self, policy: str | None) -> SchedulerCommand:
        self._num_commands += 1
        return SchedulerCommand(self._num_commands, policy)

    async def _request(self, command: SchedulerCommand) -> Any:
        params = to_vllm(
            SamplingParameters(), max_tokens=1, seed=None, extra_args={WIRE_KEY: command.to_wire()}
        )
        return await self._engine.build_request(CONTROL_REQUEST_ID, list(_NO_PROMPT), params)

    async def _confirmed(self, command: SchedulerCommand) -> SchedulerReport:
        try:
            async with asyncio.timeout(self._confirm_timeout_s):
                while self._failure is None:
                    if self._report and self._report.last_command >= command.number:
                        return self._report
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise UnavailableError(
                f"the scheduler did not confirm command {command.number}"
                f" (policy {command.set_policy}) within {self._confirm_timeout_s:g} s",
                reason="NOT_CONFIRMED",
            ) from None
        raise self._failure


@asynccontextmanager
async def open_control_channel(
    engine: ControlledEngine,
    on_report: Callable[[SchedulerReport], None],
    confirm_timeout_s: float = CONFIRM_TIMEOUT_S,
    import_paths: tuple[str, ...] = (),
) -> AsyncIterator[ControlChannel]:
    """Opens the channel to an engine's scheduler; calls `on_report` with every report.

    `import_paths` are policies that it may be switched to besides the built-in ones.
    """
    channel = ControlChannel(engine, on_report, confirm_timeout_s, import_paths)
    follower = asyncio.create_task(channel.follow(await channel.open()))
    try:
        await channel.first_report()
        yield channel
    finally:
        follower.cancel()
        await asyncio.wait([follower])
        channel.fail(UnavailableError("the worker is stopping", reason="DRAINING"))
