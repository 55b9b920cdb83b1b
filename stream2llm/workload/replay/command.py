"""What `stream2llm bench replay` does with its options: plan, replay, files.

Ctrl-C ends the replay, not the command: open sessions are cancelled, and what
was finished is reported. A second one ends the command.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile

from stream2llm.api.credentials import PLAIN, ClientSecurity
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.options import DocumentOrdering
from stream2llm.api.sampling import SamplingParameters
from stream2llm.serving.system.clock import SystemClock
from stream2llm.workload.records import RunRecord
from stream2llm.workload.replay.display import make_view
from stream2llm.workload.replay.plan import PlannedSession, Planner
from stream2llm.workload.replay.run import Target, client_of, replay
from stream2llm.workload.replay.session import Asking
from stream2llm.workload.report import save_run, write_report
from stream2llm.workload.report.compare import PROVENANCE
from stream2llm.workload.report.save import RunFileError
from stream2llm.workload.traces.format import Header
from stream2llm.workload.traces.read import TraceReader
from stream2llm.workload.traces.text import CountTokens, TextMaker

Say = Callable[[str], None]
RUN_FILE = "run.json"
# Length of an answer where neither the command nor the trace has one.
DEFAULT_MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Options:
    """As the command's help describes them."""

    trace: Path
    addresses: Sequence[str]
    output: Path
    label: str
    load_scale: float
    max_sessions: int | None
    # None: as long as the trace says, else DEFAULT_MAX_TOKENS.
    max_tokens: int | None
    ignore_eos: bool
    ordering: DocumentOrdering
    timeout_s: float
    text_seed: int
    metrics_urls: Sequence[str] | None
    security: ClientSecurity = PLAIN
    # Deadline of each session's first token; None: the cluster's.
    ttft_slo_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay left behind."""

    run: RunRecord
    page: Path
    interrupted: bool

    @property
    def num_answered(self) -> int:
        """Sessions with a whole answer."""
        return sum(not session.error for session in self.run.sessions)


def replay_to_folder(options: Options, count_tokens: CountTokens, say: Say) -> Outcome:
    """Replays a trace and writes run and report; raises Stream2LLMError before it has begun."""
    say(f"preparing {options.trace}")
    plan, header = _plan(options, count_tokens)
    run, interrupted = asyncio.run(_replay(options, plan, header, say))
    save_run(run, options.output / RUN_FILE)
    return Outcome(run, write_report([run], options.output)[0], interrupted)


def _require_writable(folder: Path) -> None:
    """Creates it, before minutes are spent on what could not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"{folder}: cannot be written: {error.strerror}"
        raise RunFileError(problem, field="--output") from error


def _plan(options: Options, count_tokens: CountTokens) -> tuple[list[PlannedSession], Header]:
    planner = Planner(
        TextMaker(count_tokens), load_scale=options.load_scale, text_seed=options.text_seed
    )
    with TraceReader(options.trace) as reader:
        sessions = islice(reader, options.max_sessions)
        plan = list(planner.plan(sessions, reader.shared))
    if not plan:
        raise InvalidRequestError(f"{options.trace}: has no session", field="--trace")
    return plan, reader.header


async def _replay(
    options: Options, plan: Sequence[PlannedSession], header: Header, say: Say
) -> tuple[RunRecord, bool]:
    clock, stop = SystemClock(), asyncio.Event()
    async with client_of(options.addresses[0], options.security) as client:
        model = (await client.model_info()).model  # without a router: fail now, once
    _require_writable(options.output)
    began = datetime.fromtimestamp(clock.wall_s(), UTC).isoformat(timespec="seconds")
    target = _target(options, header, plan, {"model": model, "began": began})
    say(f"{len(plan):,} sessions to {', '.join(options.addresses)}; {_length(plan)}")

    def warn(line: str) -> None:
        say(f"warning: {line}")

    with _short_collections(), _interruptible(stop, say):
        run = await replay(plan, target, stop=stop, view=make_view(), clock=clock, warn=warn)
    return run, stop.is_set()


def _length(plan: Sequence[PlannedSession]) -> str:
    last_s = max(session.seal_due_s for session in plan)
    return f"the last one is sealed {last_s:,.1f} s after the first may come"


def _recorded_answers(max_tokens: int | None, plan: Sequence[PlannedSession]) -> str:
    """How the answer lengths of a trace are used."""
    if not any(session.output_tokens for session in plan):
        return "none"
    return "replayed" if max_tokens is None else f"cut at {max_tokens}"


def _target(
    options: Options,
    header: Header,
    plan: Sequence[PlannedSession],
    found: Mapping[str, str | float],
) -> Target:
    max_tokens = options.max_tokens or DEFAULT_MAX_TOKENS
    sampling = SamplingParameters(
        max_tokens=max_tokens, temperature=0.0, ignore_eos=options.ignore_eos
    )
    return Target(
        addresses=options.addresses,
        system=options.label,
        trace=header.name,
        asking=Asking(
            sampling,
            options.timeout_s,
            ordering=options.ordering,
            longest_answer=options.max_tokens,
            ttft_slo_ms=options.ttft_slo_ms,
        ),
        metrics_urls=options.metrics_urls,
        security=options.security,
        settings={
            PROVENANCE: header.provenance,
            "load_scale": options.load_scale,
            "max_tokens": max_tokens,
            "recorded_answers": _recorded_answers(options.max_tokens, plan),
            "ignore_eos": str(options.ignore_eos),
            "ordering": options.ordering.value,
            "timeout_s": options.timeout_s,
            "text_seed": options.text_seed,
            "ttft_slo_ms": options.ttft_slo_ms or "none",
            "routers": len(options.addresses),
            **found,
        },
    )


@contextmanager
def _short_collections() -> Iterator[None]:
    """Keeps Python's collector from walking through everything in the middle of the run.

    With 700 sessions open such a walk took 110 ms, more than all else that made the
    generator late. Young garbage is collected as ever; what a run of minutes leaves
    beyond that was not to be seen in its memory.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(max(thresholds[0], 2_000), thresholds[1], 1_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@contextmanager
def _interruptible(stop: asyncio.Event, say: Say) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `stop`; a second one does what it always does."""
    loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)

    def interrupt() -> None:
        say("ending: open sessions are cancelled, what is finished is reported")
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def say_on_stderr(line: str) -> None:
    """Progress for people; stdout is for results."""
    print(line, file=sys.stderr, flush=True)
