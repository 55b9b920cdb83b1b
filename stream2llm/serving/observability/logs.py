"""Logging and printing of all our processes, safe against injected lines.

Ids, texts and reasons come from clients, documents and other machines. A line break in
one of them would begin a forged log line, and an escape sequence would control the
reader's terminal. So control characters are written as escapes, where lines are written
rather than where messages are made: `configure` for the log of a process, `for_terminal`
for printed text.

A line of text has the time (UTC), the level, the component with its incarnation, the logger
and the message. Structured logs (`json`) are one object a line: the same, and of a session its
id, trace and span.
"""

from __future__ import annotations

import json
import logging
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stream2llm.serving.observability import log_context

if TYPE_CHECKING:
    from stream2llm.serving.settings.observability_options import LogFormat

# Precedes each line of a stack trace: an exception's text may contain lines itself.
TRACE_MARK = "  | "

# C0 and C1 controls, DEL, line and paragraph separators, marks that change the writing
# direction, and surrogates, which no stream can encode.
_CONTROLS = "\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff"
_ALL = re.compile(f"[{_CONTROLS}]")
_ALL_BUT_LAYOUT = re.compile(f"(?![\\n\\t])[{_CONTROLS}]")
# As in JSON, so that escaped JSON is still JSON.
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def one_line(text: str) -> str:
    """Returns the text in one line, its control characters as escapes like \\n and \\u001b."""
    return _ALL.sub(_escape, text)


def for_terminal(text: str) -> str:
    """Like `one_line`, but keeps line feeds and tabs: for text that is meant to have lines."""
    return _ALL_BUT_LAYOUT.sub(_escape, text)


def configure(level: int = logging.INFO, log_format: LogFormat = "text") -> None:
    """Makes this process log to stderr, one line per record; may be called again.

    Handlers that others have added stay, and write their lines as safely.
    """
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    for handler in root.handlers:
        if type(handler.formatter) is not type(formatter):
            handler.setFormatter(formatter)
    root.setLevel(level)
    guard("vllm", log_format)


def configure_child(log_format: LogFormat = "text") -> None:
    """Calls `configure` in a process that vLLM started for an engine; elsewhere does nothing."""
    from multiprocessing import parent_process  # lazily, for the start of the command line

    if parent_process() is not None:
        configure(log_format=log_format)


def guard(name: str, log_format: LogFormat = "text") -> None:
    """Escapes what a library's own handlers write; as text, without changing their layout."""
    for handler in logging.getLogger(name).handlers:
        if log_format == "json":
            handler.setFormatter(JsonFormatter())
        elif not any(isinstance(each, _EscapedArguments) for each in handler.filters):
            handler.addFilter(_EscapedArguments())


class SafeFormatter(logging.Formatter):
    """One line for the message, then the lines of a stack trace, each marked as such."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as text; only this method's own line breaks begin a line."""
        record.message = record.getMessage()
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        parts = [one_line(self.formatMessage(record))]
        if record.exc_info:
            parts.append(_marked(self.formatException(record.exc_info)))
        if record.stack_info:
            parts.append(_marked(self.formatStack(record.stack_info)))
        return "\n".join(parts)


def own_part() -> tuple[str, int]:
    """Returns the component and the incarnation of this process; "" for none of a cluster."""
    if "STREAM2LLM_OWNER" not in os.environ:  # a command: it does without psutil
        return "", 0
    from stream2llm.serving.system.processes import own_origin

    origin = own_origin("")
    return origin.component, origin.incarnation


class TextFormatter(SafeFormatter):
    """A line as operators read it: `2026-11-29T17:08:35.123Z INFO prefill-0/2 logger: message`."""

    def __init__(self) -> None:
        component, incarnation = own_part()
        part = f"{component}/{incarnation} ".replace("%", "%%") if component else ""
        super().__init__(f"%(asctime)s %(levelname)s {part}%(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Returns the record's time in UTC, with milliseconds."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return time.replace("+00:00", "Z")


class JsonFormatter(SafeFormatter):
    """One JSON object in one line; a stack trace is a field of it."""

    def __init__(self) -> None:
        super().__init__()
        self._component, self._incarnation = own_part()

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as JSON."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if self._component:
            fields["component"] = self._component
            fields["incarnation"] = self._incarnation
        fields |= log_context.current_fields()
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        # JSON leaves DEL as it is.
        return one_line(json.dumps(fields))


class _EscapedArguments(logging.Filter):
    """Escapes a record's arguments, which may come from anywhere, but not its format string."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(one_line(a) if isinstance(a, str) else a for a in record.args)
        record.msg, record.args = for_terminal(record.getMessage()), None
        return True


def _marked(trace: str) -> str:
    return "\n".join(f"{TRACE_MARK}{one_line(line)}" for line in trace.split("\n"))


def _escape(match: re.Match[str]) -> str:
    return _SHORT.get(match[0]) or f"\\u{ord(match[0]):04x}"
