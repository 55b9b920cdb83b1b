"""What `stream2llm generate` shows: the answer on stdout, progress on stderr.

A sink takes each event of the session in order, from the client's thread.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, Protocol

from stream2llm.api.errors import Stream2LLMError
from stream2llm.client import (
    Accepted,
    Event,
    Finished,
    OversizedDocument,
    Progress,
    TokenDelta,
)
from stream2llm.serving.logs import for_terminal

if TYPE_CHECKING:
    from rich.status import Status

_NAMES: dict[type[Any], str] = {
    Accepted: "accepted",
    Progress: "progress",
    TokenDelta: "delta",
    Finished: "finished",
    OversizedDocument: "oversized_document",
}


class Sink(Protocol):
    """Where events go."""

    def event(self, event: Event) -> None: ...

    def error(self, error: Stream2LLMError) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One object a line on stdout, each with an "event" key."""

    def event(self, event: Event) -> None:
        self._write({"event": _NAMES[type(event)], **asdict(event)})

    def error(self, error: Stream2LLMError) -> None:
        fields = ("message", "reason", "field", "retry_after_s")
        self._write({"event": "error"} | {name: getattr(error, name) for name in fields})

    def close(self) -> None:
        pass

    def _write(self, value: dict[str, Any]) -> None:
        # Where stdout cannot have every character, JSON's own escapes.
        text = json.dumps(value, ensure_ascii=not _is_utf8(sys.stdout.encoding))
        print(_shown(text), flush=True)


class Text:
    """The answer as it comes, and what `watcher` makes of the progress."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._answering = False

    def event(self, event: Event) -> None:
        if isinstance(event, Progress) and not self._answering:
            self._watcher.progress(event)
        elif isinstance(event, TokenDelta):
            self._begin()
            print(_shown(event.text), end="", flush=True)
        elif isinstance(event, OversizedDocument):
            print(oversized_line(event), file=sys.stderr)
        elif isinstance(event, Finished):
            self._begin()
            print(flush=True)
            self._watcher.finished(event)

    def error(self, error: Stream2LLMError) -> None:
        pass  # the command prints it

    def close(self) -> None:
        self._watcher.close()

    def _begin(self) -> None:
        self._answering = True
        self._watcher.close()


def oversized_line(event: OversizedDocument) -> str:
    """What became of a document that was too long."""
    name = event.id or f"number {event.index + 1}"
    done = "left out" if not event.kept_tokens else f"cut behind {event.kept_tokens} tokens"
    return f"document {name} is too long and was {done} ({event.reason})"


class Watcher(Protocol):
    """What a person sees of the progress."""

    def progress(self, progress: Progress) -> None: ...

    def finished(self, finished: Finished) -> None: ...

    def close(self) -> None: ...


class Quiet:
    """Nothing."""

    def progress(self, progress: Progress) -> None: ...

    def finished(self, finished: Finished) -> None: ...

    def close(self) -> None: ...


class Lines(Quiet):
    """One line on stderr for each change."""

    def __init__(self) -> None:
        self._last = ""

    def progress(self, progress: Progress) -> None:
        line = progress_line(progress)
        if line != self._last:
            print(line, file=sys.stderr, flush=True)
        self._last = line

    def finished(self, finished: Finished) -> None:
        print(summary_line(finished), file=sys.stderr, flush=True)


class Live(Quiet):
    """One line on a terminal that changes in place until the answer begins."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._status: Status | None = None

    def progress(self, progress: Progress) -> None:
        if self._status is None:
            self._status = self._console.status("")
            self._status.start()
        self._status.update(progress_line(progress))

    def finished(self, finished: Finished) -> None:
        self._console.print(summary_line(finished), style="dim", highlight=False)

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def tell(line: str) -> None:
    """A line on stderr that also `--quiet` leaves: something was not done."""
    print(line, file=sys.stderr, flush=True)


def progress_line(progress: Progress) -> str:
    """The counts that tell how far the context has come."""
    waits = f"; waits for memory ({progress.delay})" if progress.delay else ""
    return (
        f"context: {progress.received_tokens} tokens received, "
        f"{progress.prefilled_tokens} prefilled, {progress.reused_tokens} reused, "
        f"{progress.invalidated_tokens} invalidated{waits}"
    )


def summary_line(finished: Finished) -> str:
    """What the answer took."""
    usage, timings = finished.usage, finished.timings
    return (
        f"{usage.completion_tokens} tokens ({finished.reason}) from {usage.prompt_tokens} of "
        f"prompt, {usage.uncomputed_at_seal_tokens} of them left at the seal; first token "
        f"{timings.ttft_from_seal_s:.2f} s after the seal"
    )


def _is_utf8(encoding: str | None) -> bool:
    """Whether a stream has every character; one without an encoding keeps text as it is."""
    return encoding is None or encoding.lower().replace("-", "") == "utf8"


def _shown(text: str) -> str:
    """For stdout: to a file as it is, to a terminal without what would drive it.

    An answer may repeat what documents from anywhere say.
    """
    return for_terminal(text) if sys.stdout.isatty() else text


def make_sink(*, as_json: bool, quiet: bool) -> Sink:
    """The sink for these options and this terminal."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of an answer nothing is lost
    if as_json:
        return JsonLines()
    if quiet:
        return Text(Quiet())
    return Text(Live() if sys.stderr.isatty() else Lines())
