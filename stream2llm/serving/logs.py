"""Logging and printing of all our processes, safe against injected lines.

Ids, texts and reasons come from clients, documents and other machines. A line break in
one of them would begin a forged log line, and an escape sequence would control the
reader's terminal. So control characters are written as escapes, where lines are written
rather than where messages are made: `configure` for the log of a process, `for_terminal`
for printed text.
"""

from __future__ import annotations

import logging
import re

FORMAT = "%(levelname)s:%(name)s:%(message)s"
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


def configure(level: int = logging.INFO) -> None:
    """Makes this process log to stderr, one line per record; may be called again.

    Handlers that others have added stay, and write their lines as safely.
    """
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    for handler in root.handlers:
        if not isinstance(handler.formatter, SafeFormatter):
            handler.setFormatter(SafeFormatter(FORMAT))
    root.setLevel(level)
    guard("vllm")


def configure_child() -> None:
    """Calls `configure` in a process that vLLM started for an engine; elsewhere does nothing."""
    from multiprocessing import parent_process  # lazily, for the start of the command line

    if parent_process() is not None:
        configure()


def guard(name: str) -> None:
    """Escapes what a library's own handlers write, without changing their layout."""
    for handler in logging.getLogger(name).handlers:
        if not any(isinstance(each, _EscapedArguments) for each in handler.filters):
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
