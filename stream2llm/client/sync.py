"""The synchronous client: the same interface for code without an event loop.

    with Client("host:port") as client, client.session(prefix=...) as s:
        s.append(document)
        for event in s.seal(): ...

All calls are forwarded to the asynchronous client, which runs in one background thread
per Client. Ctrl-C interrupts any call; leaving the blocks cancels the sessions.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

from stream2llm.api.events import Answer, Event, ModelInfo, OversizedDocument, Progress, ServerInfo
from stream2llm.api.requests import Content
from stream2llm.client.aio import AsyncClient
from stream2llm.client.inputs import DocumentLike, Prompt
from stream2llm.client.session import AsyncSession
from stream2llm.client.stream import AnswerStream

T = TypeVar("T")


class Portal:
    """One daemon thread that runs one event loop until `close`.

    The caller's thread waits on a future and does not poll, so Ctrl-C reaches it at once;
    the coroutine is then cancelled.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_quiet_poller)
        self._thread = threading.Thread(target=self._run, name="stream2llm-client", daemon=True)
        self._closed = False
        self._pid = os.getpid()
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop and returns its result; an interrupt cancels it."""
        unusable = self._unusable()
        if unusable:
            coroutine.close()
            raise RuntimeError(unusable)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # does nothing when the coroutine itself raised
            raise

    def close(self) -> None:
        """Cancels what still runs and ends the thread."""
        if not self._closed:
            self._closed = True
            if os.getpid() != self._pid:
                return  # in a fork: thread and loop belong to the parent
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _unusable(self) -> str | None:
        """Returns why no call can be made from here."""
        if self._closed:
            return "the client is closed"
        if os.getpid() != self._pid:
            return (
                "the client belongs to the process that made it, of which this one is a fork: "
                'start processes with multiprocessing.get_context("spawn")'
            )
        if threading.current_thread() is self._thread:
            return "a callback cannot call the client it belongs to: it would wait for itself"
        return None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_all())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()


async def _cancel_all() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


def _quiet_poller(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Drops one harmless report: grpc.aio has one wake-up pipe for all loops of a
    process, and a loop that finds it already drained gets BlockingIOError."""
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)


class Stream:
    """The answer as events: iterate it once, or call `answer()`."""

    def __init__(self, portal: Portal, stream: AnswerStream) -> None:
        self._portal = portal
        self._stream = stream

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        try:
            return self._portal.call(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends a stream that is not read to its end."""
        self._portal.call(self._stream.aclose())

    def answer(self) -> Answer:
        """Reads to the end; returns the whole answer."""
        return self._portal.call(self._stream.answer())

    def answers(self) -> tuple[Answer, ...]:
        """Reads to the end; returns all answers in the order of their index."""
        return self._portal.call(self._stream.answers())


class Session:
    """Created by `Client.session`; see AsyncSession for its methods."""

    def __init__(self, portal: Portal, session: AsyncSession) -> None:
        self._portal = portal
        self._session = session

    @property
    def session_id(self) -> str:
        """The id under which the server logs this session."""
        return self._session.session_id

    @property
    def model(self) -> str:
        """The served model's name."""
        return self._session.model

    @property
    def progress(self) -> Progress:
        """The server's newest progress; never waits."""
        return self._session.progress

    @property
    def oversized_documents(self) -> tuple[OversizedDocument, ...]:
        """Documents that were refused or cut so far; all of them once the answer begins."""
        return self._session.oversized_documents

    def __enter__(self) -> Self:
        self._portal.call(self._session.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self._portal.call(self._session.close())
        if kind is None:
            self._session.warn_of_forgotten_answer(stacklevel=3)

    def append(self, *documents: DocumentLike) -> None:
        """Sends documents that follow those sent before; waits for credit."""
        self._portal.call(self._session.append(*documents))

    def update(self, documents: Iterable[DocumentLike]) -> None:
        """Replaces the document list."""
        if isinstance(documents, Iterator):
            documents = list(documents)  # in this thread, because an iterator may block
        self._portal.call(self._session.update(documents))

    def seal(self, suffix: Content | None = None, **last: Any) -> Stream:
        """Completes the context; iterate the answer's events.

        `append` or `update` are the last documents, as AsyncSession.seal takes them.
        """
        return Stream(self._portal, self._session.seal(suffix, **last))

    def answer(self, suffix: Content | None = None, **last: Any) -> Answer:
        """Seals, and returns the whole answer; arguments as `seal` takes them."""
        return self.seal(suffix, **last).answer()

    def answers(self, suffix: Content | None = None, **last: Any) -> tuple[Answer, ...]:
        """Seals, and returns all `sampling.n` answers in the order of their index."""
        return self.seal(suffix, **last).answers()

    def events(self) -> Iterator[Event]:
        """Yields Accepted and Progress until the seal; for another thread than the sender's."""
        events = self._session.events()
        while True:
            try:
                yield self._portal.call(_next(events))
            except StopAsyncIteration:
                return


class Client:
    """A client of the router at "host:port", or of several. Use it in `with`, or call `close`.

    Takes the options of AsyncClient. Several threads may use it; each session belongs to
    one at a time. `on_event` callbacks run in the client's own thread and must not call
    the client.
    """

    def __init__(self, address: str | Sequence[str], **options: Any) -> None:
        self._client = AsyncClient(address, **options)
        self.address = self._client.address
        self._portal = Portal()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel, cancels open sessions and ends the background thread."""
        try:
            self._portal.call(self._client.close())
        except RuntimeError:
            pass  # closed before
        finally:
            self._portal.close()

    def session(self, **options: Any) -> Session:
        """Returns a session whose context streams in; options as AsyncClient.session takes them."""
        return Session(self._portal, self._client.session(**options))

    def generate(self, prompt: Prompt, **options: Any) -> Stream:
        """Answers one complete prompt: iterate it, or `.answer()` it."""
        return Stream(self._portal, self._client.generate(prompt, **options))

    def model_info(self, model: str = "") -> ModelInfo:
        """Returns the served model and its limits."""
        return self._portal.call(self._client.model_info(model))

    def server_info(self) -> ServerInfo:
        """Returns versions, workers and load, as the router sees them."""
        return self._portal.call(self._client.server_info())


async def _next(events: AsyncIterator[Event]) -> Event:
    return await anext(events)


def connect_sync(address: str | Sequence[str], **options: Any) -> Client:
    """Returns a Client for "host:port", or several; options as AsyncClient takes them."""
    return Client(address, **options)
