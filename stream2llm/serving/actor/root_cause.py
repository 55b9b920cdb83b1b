"""Finds the cause of an engine's failed start in its log.

vLLM's engine processes write their traceback to the log; the caller's exception says
only that the engine core did not start. Only `LogTail` reads a file.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from stream2llm.serving.observability.logs import TRACE_MARK

# "(EngineCore pid=1) ERROR 11-22 06:01:12 [core.py:1] ValueError: text" or plain "ValueError: text"
_MARK = re.escape(TRACE_MARK.strip())  # marks the lines of a trace in our own logs
_PREFIX = rf"(?:\([^)]*pid=\d+\)\s*)?(?:\w+ \d\d-\d\d [\d:]+ \[[^\]]*\]\s?)?(?: *{_MARK} )?"
_EXCEPTION = re.compile(
    rf"^{_PREFIX}((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)): (\S.*)$", re.MULTILINE
)
# Messages that only refer to another one.
_POINTERS = ("See root cause above", "See stack trace", "failed to start", "died unexpectedly")
# Exceptions after which the same start would fail again.
_PERMANENT = frozenset(
    [
        "ValueError",
        "TypeError",
        "KeyError",
        "FileNotFoundError",
        "NotImplementedError",
        "ImportError",
        "ModuleNotFoundError",
        "AttributeError",
        "ValidationError",
        "PermissionError",
        "InvalidRequestError",
        "NotFoundError",
        "UnsupportedError",
        "ModelStoreError",
        "ProfileError",
    ]
)
MAX_REASON_CHARS = 2000


def find_root_cause(log: str) -> tuple[str, str] | None:
    """Returns (exception name, message) of the first exception that is not a reference."""
    for match in _EXCEPTION.finditer("\n".join(map(_as_text, log.split("\n")))):
        if not any(pointer in match[2] for pointer in _POINTERS):
            return match[1].rsplit(".", 1)[-1], match[2].strip()[:MAX_REASON_CHARS]
    return None


def _as_text(line: str) -> str:
    """Returns message and stack trace of a line of a structured log; any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        record = json.loads(line)
    except ValueError:
        return line
    return "\n".join(str(record[key]) for key in ("message", "exception") if key in record)


def is_permanent(exception_name: str) -> bool:
    """Whether a retry is pointless."""
    return exception_name in _PERMANENT


def describe_failure(error: BaseException, log: str) -> tuple[str, bool]:
    """Returns (message for the user, whether a retry is pointless)."""
    name = type(error).__name__
    text = f"{name}: {error}"[:MAX_REASON_CHARS]
    cause = None if is_permanent(name) else find_root_cause(log)
    if cause is None or cause[1] in text:
        return text, is_permanent(name)
    return f"{cause[0]}: {cause[1]} (then {text})", is_permanent(cause[0])


class LogTail:
    """Reads what this process and its children write to stdout and stderr from now on.

    Works where both are redirected to files, as Ray does; elsewhere it is empty.
    """

    def __init__(self) -> None:
        self._starts = {path: path.stat().st_size for path in self._files()}

    def read(self, max_bytes: int = 1 << 20) -> str:
        """Returns the text so far, at most the first `max_bytes` of each file."""
        parts = []
        for path, start in self._starts.items():
            with path.open("rb") as file:
                file.seek(start)
                parts.append(file.read(max_bytes).decode(errors="replace"))
        return "\n".join(parts)

    @staticmethod
    def _files() -> set[Path]:
        targets = (Path(os.readlink(f"/proc/self/fd/{fd}")) for fd in (1, 2))
        return {path for path in targets if path.is_file()}
