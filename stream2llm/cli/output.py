"""The output of `stream2llm generate`: the answer on stdout, progress on stderr.

A sink gets each event of the session in order, from the client's thread.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import asdict
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, Protocol

from stream2llm.api.errors import Stream2LLMError
from stream2llm.client import Accepted, Event, Finished, OversizedDocument, Progress, TokenDelta
from stream2llm.serving.observability.logs import for_terminal

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
    """The destination of events."""

    def event(self, event: Event) -> None: ...

    def error(self, error: Stream2LLMError) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One object per line on stdout, each with an "event" key."""

    def event(self, event: Event) -> None:
        self._write({"event": _NAMES[type(event)], **asdict(event)})

    def error(self, error: Stream2LLMError) -> None:
        fields = ("message", "reason", "field", "retry_after_s")
        self._write({"event": "error"} | {name: getattr(error, name) for name in fields})

    def close(self) -> None:
        pass

    def _write(self, value: dict[str, Any]) -> None:
        # JSON's own escapes where stdout cannot encode every character.
        text = json.dumps(value, ensure_ascii=not _is_utf8(sys.stdout.encoding))
        print(_shown(text), flush=True)


class Text:
    """Prints the answers as they arrive, one below the other; `watcher` shows the progress.

    One answer at a time: what comes of those behind it waits for its end.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        # Whether something has been printed of the present answer.
        self._answering = False
        self._index = 0
        self._waiting: defaultdict[int, list[TokenDelta | Finished]] = defaultdict(list)

    def event(self, event: Event) -> None:
        if not isinstance(event, TokenDelta | Finished):
            self._report(event)
        elif event.index > self._index:
            self._waiting[event.index].append(event)
        else:
            self._print(event)
            if isinstance(event, Finished):
                self._index, self._answering = self._index + 1, False
                for each in self._waiting.pop(self._index, ()):
                    self.event(each)

    def _report(self, event: Event) -> None:
        if isinstance(event, Progress) and not self._answering:
            self._watcher.progress(event)
        elif isinstance(event, OversizedDocument):
            print(for_terminal(oversized_line(event)), file=sys.stderr)

    def _print(self, event: TokenDelta | Finished) -> None:
        self._begin()
        if isinstance(event, TokenDelta):
            print(_shown(event.text), end="", flush=True)
        else:
            print(flush=True)
            self._watcher.finished(event)

    def error(self, error: Stream2LLMError) -> None:
        pass  # the command prints it

    def close(self) -> None:
        self._watcher.close()

    def _begin(self) -> None:
        if self._index and not self._answering:
            print(for_terminal(f"\n--- answer {self._index + 1} ---"), flush=True)
        self._answering = True
        self._watcher.close()


def oversized_line(event: OversizedDocument) -> str:
    """Describes what happened to a document that was too long."""
    name = event.id or f"number {event.index + 1}"
    done = "left out" if not event.kept_tokens else f"cut behind {event.kept_tokens} tokens"
    return f"document {name} is too long and was {done} ({event.reason})"


class Watcher:
    """Shows the progress to a person; this one shows nothing."""

    def progress(self, progress: Progress) -> None: ...

    def finished(self, finished: Finished) -> None: ...

    def close(self) -> None: ...


class Lines(Watcher):
    """Prints one line on stderr for each change."""

    def __init__(self) -> None:
        self._last = ""

    def progress(self, progress: Progress) -> None:
        line = progress_line(progress)
        if line != self._last:
            print(for_terminal(line), file=sys.stderr, flush=True)
        self._last = line

    def finished(self, finished: Finished) -> None:
        print(for_terminal(summary_line(finished)), file=sys.stderr, flush=True)


class Live(Watcher):
    """Updates one line on a terminal in place until the answer begins."""

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


def warn(line: str) -> None:
    """Prints a line on stderr, even with `--quiet`: something was not done."""
    print(for_terminal(line), file=sys.stderr, flush=True)


def progress_line(progress: Progress) -> str:
    """Returns the counts that show how much of the context is prefilled."""
    waits = f"; waits for memory ({progress.delay})" if progress.delay else ""
    return (
        f"context: {progress.received_tokens} tokens received, "
        f"{progress.prefilled_tokens} prefilled, {progress.reused_tokens} reused, "
        f"{progress.invalidated_tokens} invalidated{waits}"
    )


def summary_line(finished: Finished) -> str:
    """Returns the answer's counts and times."""
    usage, timings = finished.usage, finished.timings
    if finished.index:  # the prompt is the first answer's
        return f"{usage.completion_tokens} tokens ({finished.reason})"
    return (
        f"{usage.completion_tokens} tokens ({finished.reason}) from {usage.prompt_tokens} of "
        f"prompt, {usage.uncomputed_at_seal_tokens} of them left at the seal; first token "
        f"{timings.ttft_from_seal_s:.2f} s after the seal"
    )


def _is_utf8(encoding: str | None) -> bool:
    """Whether a stream can encode every character; one without an encoding keeps text as is."""
    return encoding is None or encoding.lower().replace("-", "") == "utf8"


def _shown(text: str) -> str:
    """Returns text for stdout: unchanged for a file, without control characters for a terminal.

    An answer may repeat what untrusted documents contain.
    """
    return for_terminal(text) if sys.stdout.isatty() else text


def make_sink(*, as_json: bool, quiet: bool) -> Sink:
    """Returns the sink for these options and this terminal."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # lose no part of an answer
    if as_json:
        return JsonLines()
    if quiet:
        return Text(Watcher())
    return Text(Live() if sys.stderr.isatty() else Lines())
