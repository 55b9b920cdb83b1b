"""How every process of ours logs and prints: nobody outside can write a line of ours.

Ids, texts and reasons come from clients, documents and other machines. A line break
in one of them would begin a forged log line, an escape sequence would drive the
reader's terminal. So control characters are written as escapes, and that is done
where lines are made, not where messages are written: `configure` for the log of a
process, `for_terminal` for what is printed.
"""

from __future__ import annotations

import logging
import re

FORMAT = "%(levelname)s:%(name)s:%(message)s"
# Before each line of a stack trace: an exception's text may have lines of its own.
TRACE_MARK = "  | "

# C0 and C1 controls, DEL, line and paragraph separators, marks that turn the
# direction of writing, and surrogates, which no stream can encode.
_CONTROLS = "\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff"
_ALL = re.compile(f"[{_CONTROLS}]")
_ALL_BUT_LAYOUT = re.compile(f"(?![\\n\\t])[{_CONTROLS}]")
# As JSON writes them, so that escaped JSON is still JSON.
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def one_line(text: str) -> str:
    """The text in one line, its control characters as escapes like \\n and \\u001b."""
    return _ALL.sub(_escape, text)


def for_terminal(text: str) -> str:
    """The same, but line feeds and tabs stay: for text that is meant to have lines."""
    return _ALL_BUT_LAYOUT.sub(_escape, text)


def configure(level: int = logging.INFO) -> None:
    """Has this process log to stderr, one line a record; may be called again.

    Handlers that others have put in place stay, and write their lines as safely.
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
    """`configure`, in a process that vLLM started for an engine; elsewhere nothing."""
    from multiprocessing import parent_process  # the command line must not wait for it

    if parent_process() is not None:
        configure()


def guard(name: str) -> None:
    """Escapes what a library's own handlers write, whose layout stays as it is."""
    for handler in logging.getLogger(name).handlers:
        if not any(isinstance(each, _EscapedArguments) for each in handler.filters):
            handler.addFilter(_EscapedArguments())


class SafeFormatter(logging.Formatter):
    """One line for the message, then the lines of a stack trace, each marked as such."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; only what this method adds begins a line."""
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
    """A library's format strings are its own, their arguments may come from anywhere."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(one_line(a) if isinstance(a, str) else a for a in record.args)
        record.msg, record.args = for_terminal(record.getMessage()), None
        return True


def _marked(trace: str) -> str:
    return "\n".join(f"{TRACE_MARK}{one_line(line)}" for line in trace.split("\n"))


def _escape(match: re.Match[str]) -> str:
    return _SHORT.get(match[0]) or f"\\u{ord(match[0]):04x}"
