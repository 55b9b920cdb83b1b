"""What an application's sessions send, in a file of which `stream2llm trace record` makes a trace.

Where the environment names a file, each session that is sealed appends a line to it when it
ends. Times are when the application called, before any wait for credit: a recording has the
pace of the retrieval, not that of the cluster.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stream2llm.api.requests import (
    AppendContext,
    ChatTemplate,
    Document,
    OpenSession,
    PlainTemplate,
    SealContext,
    UpdateContext,
)

RECORDING_VARIABLE = "STREAM2LLM_RECORDING"
# Text or token ids, as a file can hold them.
RecordedContent = str | list[int]


@dataclass(frozen=True, slots=True)
class RecordedDocument:
    """A document as it was sent; without content one that was sent before."""

    id: str
    content: RecordedContent | None


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An append or an update."""

    # After the session's opening.
    at_s: float
    kind: Literal["append", "update"]
    documents: tuple[RecordedDocument, ...]


@dataclass(frozen=True, slots=True)
class RecordedSession:
    """One line: a session that was sealed."""

    session_id: str
    # By the machine's monotonic clock, which all its processes share.
    opened_s: float
    # What stands before and behind the documents.
    prefix: RecordedContent
    suffix: RecordedContent
    events: tuple[RecordedEvent, ...]
    # After the opening.
    sealed_s: float
    # Tokens of the whole answer; None where it did not come to an end.
    output_tokens: int | None


def recording_path() -> Path | None:
    """The file that the environment names."""
    named = os.environ.get(RECORDING_VARIABLE)
    return Path(named) if named else None


class SessionRecording:
    """Takes what one session sends; `write` appends its line."""

    def __init__(self, path: Path, opening: OpenSession) -> None:
        self._path = path
        self._prefix, self._suffix = _parts(opening)
        self._opened_s = 0.0
        self._events: list[RecordedEvent] = []
        self._sealed_s: float | None = None
        self._output_tokens: int | None = None

    def opened(self) -> None:
        """The session opens now."""
        self._opened_s = _now_s()

    def sent(self, event: AppendContext | UpdateContext | SealContext) -> None:
        """The session sends that now."""
        at_s = _now_s() - self._opened_s
        if isinstance(event, SealContext):
            if event.change is not None:
                self.sent(event.change)
            self._sealed_s = at_s
            self._suffix = self._suffix if event.suffix is None else _plain(event.suffix)
            return
        kind: Literal["append", "update"] = (
            "append" if isinstance(event, AppendContext) else "update"
        )
        self._events.append(RecordedEvent(at_s, kind, _documents(event.documents)))

    def answered(self, num_tokens: int) -> None:
        """The whole answer is here."""
        self._output_tokens = num_tokens

    def write(self, session_id: str) -> None:
        """Appends a session that was sealed; once, however often it is called."""
        if self._sealed_s is None:
            return
        recorded = RecordedSession(
            session_id=session_id,
            opened_s=self._opened_s,
            prefix=self._prefix,
            suffix=self._suffix,
            events=tuple(self._events),
            sealed_s=self._sealed_s,
            output_tokens=self._output_tokens,
        )
        self._sealed_s = None
        line = json.dumps(asdict(recorded)).encode() + b"\n"
        # One write, so that lines of several processes do not mix.
        with self._path.open("ab", buffering=0) as file:
            file.write(line)


def read_recording(path: Path) -> Iterator[RecordedSession]:
    """Each session of a file, in the order of their ends."""
    with path.open("rb") as file:
        for line in file:
            yield _session(json.loads(line))


def _session(raw: dict[str, Any]) -> RecordedSession:
    events = tuple(
        RecordedEvent(
            event["at_s"],
            event["kind"],
            tuple(RecordedDocument(**document) for document in event["documents"]),
        )
        for event in raw["events"]
    )
    return RecordedSession(**{**raw, "events": events})


def _documents(documents: Sequence[Document]) -> tuple[RecordedDocument, ...]:
    return tuple(
        RecordedDocument(each.id, None if each.content is None else _plain(each.content))
        for each in documents
    )


def _parts(opening: OpenSession) -> tuple[RecordedContent, RecordedContent]:
    """What stands before and behind the documents; of a chat without the template's own text."""
    template = opening.template
    if isinstance(template, PlainTemplate):
        return _plain(template.prefix), _plain(template.suffix)
    assert isinstance(template, ChatTemplate), "sessions have no complete prompt"
    said = "\n\n".join(message.content for message in template.messages)
    before, _, behind = said.partition(template.context_slot)
    return before, behind


def _plain(content: Any) -> RecordedContent:
    return content if isinstance(content, str) else list(content)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
