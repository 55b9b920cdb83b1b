"""`stream2llm trace record`: what sessions send becomes a trace, and its replay sends the same."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client import AsyncClient, AsyncSession, Document, DocumentRef, SamplingParameters
from stream2llm.client.recording import (
    RECORDING_VARIABLE,
    RecordedDocument,
    RecordedEvent,
    RecordedSession,
    read_recording,
)
from stream2llm.workload.replay.plan import Planner
from stream2llm.workload.replay.run import Target, replay
from stream2llm.workload.replay.session import Asking
from stream2llm.workload.traces.format import Content, Session
from stream2llm.workload.traces.imports import Importing
from stream2llm.workload.traces.read import TraceReader
from stream2llm.workload.traces.recording import header, sessions_of
from stream2llm.workload.traces.text import TextMaker
from stream2llm.workload.traces.write import write_trace
from tests.command_lines import cli
from tests.fake_router import Conversation, FakeRouter, Script, polite
from tests.unit.client.conftest import ThreadedRouter

APPLICATION = """
import sys
from stream2llm.client import Client
with Client(sys.argv[1]) as client:
    with client.session(prefix="Answer. ") as session:
        session.append("a page. ")
        print(session.answer(suffix="Who?").text)
    with client.session() as session:
        session.append("never sealed")
sys.exit(7)
"""


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "recording.jsonl"
    monkeypatch.setenv(RECORDING_VARIABLE, str(path))
    return path


@asynccontextmanager
async def a_session(script: Script = polite, **options: Any) -> AsyncIterator[AsyncSession]:
    """One at a router of its own."""
    async with (
        FakeRouter(script) as router,
        AsyncClient(router.address) as client,
        client.session(**options) as session,
    ):
        yield session


def kinds_and_documents(conversation: Conversation) -> list[tuple[str, Any]]:
    return [
        (request.WhichOneof("event"), [(d.id, d.text) for d in documents_of(request)])
        for request in conversation.received[1:]
    ]


def documents_of(request: pb.StreamGenerateRequest) -> Any:
    if request.WhichOneof("event") == "seal":
        return ()
    return getattr(request, request.WhichOneof("event")).documents


async def test_a_recording_replayed_sends_the_same_events(recording: Path, tmp_path: Path) -> None:
    async with FakeRouter() as router, AsyncClient(router.address) as client:
        async with client.session(prefix="Rank. ", session_id="search") as session:
            await session.update([Document("first. ", id="a"), Document("second. ", id="b")])
            await session.update([DocumentRef("b"), Document("third. ", id="c")])
            await session.append(Document("fourth. ", id="d"))
            await session.answer(suffix="Which?")
        trace = tmp_path / "trace.jsonl"
        sessions = sessions_of(read_recording(recording), Importing())
        write_trace(trace, header("search", "a test", "words"), sessions)
        with TraceReader(trace) as reader:
            plan = list(Planner(TextMaker()).plan(reader, reader.shared))
        asking = Asking(SamplingParameters(max_tokens=3), timeout_s=60)
        target = Target([router.address], "ours", "a test", asking, metrics_urls=())
        run = await replay(plan, target)
        recorded, replayed = router.conversations
    assert [session.error for session in run.sessions] == [""]
    assert kinds_and_documents(replayed) == kinds_and_documents(recorded)
    assert replayed.received[0].open.session_id == "search"
    assert replayed.received[0].open.plain.prefix.text == "Rank. "
    assert replayed.received[-1].seal.suffix.text == "Which?"
    assert plan[0].output_tokens == 3


async def test_times_are_those_of_the_calls_and_not_those_of_credit(recording: Path) -> None:
    async def stingy(conversation: Conversation) -> None:
        await conversation.accept(credit_tokens=0)
        await may_send.wait()
        await conversation.progress()
        while (request := await conversation.next()) is not None:
            if request.WhichOneof("event") == "seal":
                await conversation.answer("one")

    may_send = asyncio.Event()
    async with a_session(stingy) as session:
        asyncio.get_running_loop().call_later(0.2, may_send.set)
        await session.append("held back")
        await session.answer()
    (recorded,) = read_recording(recording)
    assert recorded.events[0].at_s < 0.2 <= recorded.sealed_s


async def test_the_messages_of_a_chat_stand_before_and_behind_the_documents(
    recording: Path,
) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Read {{context}} and say who."},
    ]
    async with a_session(chat=chat) as session:
        await session.answer()
    (recorded,) = read_recording(recording)
    assert (recorded.prefix, recorded.suffix) == ("Be brief.\n\nRead ", " and say who.")


async def test_a_session_that_is_never_sealed_is_not_recorded(recording: Path) -> None:
    async with a_session() as session:
        await session.append("a page")
    assert list(recording.parent.iterdir()) == []


def a_recording(*events: RecordedEvent, opened_s: float = 5.0, name: str = "s") -> RecordedSession:
    return RecordedSession(name, opened_s, "", [1, 2, 3], events, 2.0, None)


def of(*recorded: RecordedSession) -> list[Session]:
    return list(sessions_of(recorded, Importing()))


def test_sessions_come_in_the_order_of_their_openings() -> None:
    earlier, later = of(a_recording(opened_s=9.5), a_recording(opened_s=7.0))
    assert (earlier.arrival_s, earlier.id, later.arrival_s, later.id) == (0.0, "s", 2.5, "s#2")


def test_an_id_that_gets_another_text_is_another_document() -> None:
    old, new = RecordedDocument("page", "old"), RecordedDocument("page", "new")
    again = RecordedDocument("page", None)
    (session,) = of(
        a_recording(
            RecordedEvent(0.1, "update", (old,)),
            RecordedEvent(0.2, "update", (new,)),
            RecordedEvent(0.3, "update", (again, old)),
        )
    )
    assert [each.text for each in session.documents] == ["old", "new", "old"]
    assert [event.documents for event in session.events] == [
        ("page",),
        ("page#2",),
        ("page#2", "page#3"),
        (),
    ]


def test_unnamed_documents_are_numbered_and_empty_ones_left_out() -> None:
    documents = tuple(RecordedDocument("", text) for text in ("x", "", "y"))
    nothing = RecordedEvent(0.2, "append", (RecordedDocument("", ""),))
    (session,) = of(a_recording(RecordedEvent(0.1, "append", documents), nothing))
    assert [each.id for each in session.documents] == ["document", "document#2"]
    assert [event.kind for event in session.events] == ["append", "seal"]


def test_of_token_ids_their_number_is_kept() -> None:
    (session,) = of(
        a_recording(RecordedEvent(0.1, "append", (RecordedDocument("", [4, 5, 6, 7]),)))
    )
    assert session.suffix == Content(tokens=3)
    assert session.documents[0].tokens == 4


def test_the_command_records_an_application_and_ends_with_its_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    arguments = ["trace", "record", "-o", str(trace), "--"]
    with ThreadedRouter() as router:
        command = [sys.executable, "-c", APPLICATION, router.fake.address]
        ended = cli(*arguments, *command)
    assert ended.exit_code == 7, ended.output
    with TraceReader(trace) as reader:
        (session,) = reader
    assert [event.kind for event in session.events] == ["append", "seal"]
    assert (session.prefix.text, session.suffix.text) == ("Answer. ", "Who?")
    assert session.documents[0].text == "a page. "
    assert session.output_tokens == 3


def test_a_command_that_streams_nothing_is_an_error(tmp_path: Path) -> None:
    arguments = ["trace", "record", "-o", str(tmp_path / "trace.jsonl"), "--"]
    ended = cli(*arguments, sys.executable, "-c", "pass")
    assert ended.exit_code == 3
    assert "sealed no session" in ended.output
    missing = cli(*arguments, "/no/such/program")
    assert (missing.exit_code, "cannot be run" in missing.output) == (3, True)
