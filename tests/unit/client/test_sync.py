"""The synchronous twin, its background thread and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import grpc
import pytest

from stream2llm.api.errors import (
    EventOrderError,
    IdleTimeoutError,
    InvalidRequestError,
    UnavailableError,
)
from stream2llm.client import (
    Accepted,
    Client,
    Document,
    Finished,
    Progress,
    SamplingParameters,
    TokenDelta,
    connect_sync,
)
from tests import fake_router
from tests.fake_router import Conversation


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stream2llm-client"]


def test_a_session_as_in_the_readme(threaded_router):
    seen = []
    with connect_sync(threaded_router.fake.address) as client:
        sampling = SamplingParameters(max_tokens=3)
        with client.session(prefix="P", sampling=sampling, on_event=seen.append) as session:
            assert session.model == "fake"
            session.append("one", Document("two", id="b"))
            session.update(["one"])
            events = list(session.seal(suffix="Q"))
        assert client.model_info().model == "fake"
        assert client.server_info().router_id == "router-0"
        assert client.generate("prompt").answer().text == "one two three"
        assert [type(event) for event in client.generate("prompt")][-1] is Finished
    texts = [event.text for event in events if isinstance(event, TokenDelta)]
    assert texts == ["one", " two", " three"]
    assert [type(event) for event in seen[:2]] == [Accepted, Progress]
    assert threaded_router.next_end() == "returned"
    assert client_threads() == []


def test_events_can_be_watched_from_another_thread(threaded_router):
    progressed = threading.Event()

    def watch() -> None:
        for event in session.events():  # ends at the seal
            if isinstance(event, Progress):
                progressed.set()

    with Client(threaded_router.fake.address) as client, client.session() as session:
        watcher = threading.Thread(target=watch)
        watcher.start()
        session.append("one")
        assert progressed.wait(10)
        session.answer()
        watcher.join(10)
        assert not watcher.is_alive()


def test_leaving_early_cancels_the_rpc(threaded_router):
    with Client(threaded_router.fake.address) as client:
        with client.session() as session:
            session.append("one")
        assert threaded_router.next_end() == "cancelled"


def test_leaving_a_one_shot_answer_cancels_the_rpc(threaded_router):
    async def endless(conversation: Conversation) -> None:
        await conversation.answer_begins("one")
        await fake_router.forever()

    threaded_router.fake.script = endless
    with Client(threaded_router.fake.address) as client:
        with client.generate("prompt") as stream:
            assert next(stream) == TokenDelta("one", (0,))
        assert threaded_router.next_end() == "cancelled"


def test_errors_are_those_of_the_asynchronous_client(threaded_router):
    async def refuse(conversation: Conversation) -> None:
        await conversation.fail(
            grpc.StatusCode.UNAVAILABLE, "draining", fake_router.error_info("DRAINING")
        )

    threaded_router.fake.script = refuse
    with Client(threaded_router.fake.address) as client:
        with pytest.raises(UnavailableError, match="draining"), client.session():
            pytest.fail("refused")
        with pytest.raises(EventOrderError, match="the session is not open"):
            client.session().answer()
        with pytest.raises(InvalidRequestError, match=r"sampling\.temperature is None"):
            client.generate("x", sampling=SamplingParameters(temperature=None))


def test_a_session_that_is_out_of_time_says_so(threaded_router):
    async def silent(conversation: Conversation) -> None:
        await conversation.accept()
        await fake_router.forever()

    def ask() -> None:
        with client.session(timeout_s=0.3) as session:
            session.answer()

    threaded_router.fake.script = silent
    with Client(threaded_router.fake.address) as client:
        with pytest.raises(IdleTimeoutError, match=r"the answer did not end within .* of 0\.3 s"):
            ask()
        assert client.model_info().model == "fake"


def test_a_closed_client_says_so():
    client = Client("127.0.0.1:1")
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.model_info()
    assert client_threads() == []


def test_a_callback_must_not_call_the_client(threaded_router):
    def call_back(_: object) -> None:
        client.model_info()

    with (
        Client(threaded_router.fake.address) as client,
        pytest.raises(RuntimeError, match="wait for itself"),
        client.session(on_event=call_back) as session,
    ):
        session.answer()


def test_closing_the_client_cancels_a_session_another_thread_waits_in(threaded_router):
    waiting = threading.Event()
    errors: list[BaseException] = []

    async def silent(conversation: Conversation) -> None:
        await conversation.accept()
        await conversation.next()
        waiting.set()
        await fake_router.forever()

    def use() -> None:
        try:
            with client.session() as session:
                session.answer()
        except BaseException as error:
            errors.append(error)

    threaded_router.fake.script = silent
    client = Client(threaded_router.fake.address)
    thread = threading.Thread(target=use)
    thread.start()
    assert waiting.wait(10)
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert errors


INTERRUPTED = """
import signal, sys, threading
from stream2llm.client import Client
with Client(sys.argv[1]) as client:
    try:
        with client.session() as session:
            session.append("one")
            print("waiting", flush=True)
            session.answer()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(client.model_info().model, flush=True)
"""


def test_ctrl_c_interrupts_a_waiting_call_and_cancels_the_rpc(threaded_router):
    sealed = threading.Event()

    async def silent(conversation: Conversation) -> None:
        await conversation.accept()
        await conversation.next()
        await conversation.next()
        sealed.set()
        await fake_router.forever()

    threaded_router.fake.script = silent
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, threaded_router.fake.address],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert sealed.wait(20)
        os.kill(process.pid, signal.SIGINT)
        stdout, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert stdout.split() == ["waiting", "interrupted", "fake"]
    assert threaded_router.next_end() == "cancelled"


def test_a_seal_that_is_not_iterated_is_a_warning_where_the_block_ends(threaded_router):
    def forget() -> None:
        with Client(threaded_router.fake.address) as client, client.session() as session:
            session.seal()

    with pytest.warns(RuntimeWarning, match="its answer never read") as caught:
        forget()
    assert caught[0].filename == __file__
    assert threaded_router.next_end() == "cancelled"
