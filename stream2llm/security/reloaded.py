"""Files with credentials that are read again when they change, without a restart."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

from stream2llm.api.errors import InvalidRequestError

T = TypeVar("T")


class Reloaded(ABC, Generic[T]):
    """The newest usable content of some files. Any thread may ask it.

    Nothing polls: `newest` costs one `stat` a file as long as none has changed. Files that
    cannot be used (half written, gone) leave the content from before in force.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Raises InvalidRequestError when the files cannot be used from the beginning."""
        self._paths = tuple(paths)
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._newest = self._read()
        self.num_failed_reads = 0

    def newest(self) -> T:
        """The same value as before unless a file has changed and all of them can be used."""
        with self._lock:
            stamps = self._stamps()
            if stamps != self._seen:
                # Before reading: what is written meanwhile is another change.
                self._seen = stamps
                self._read_again()
            return self._newest

    def _read_again(self) -> None:
        try:
            self._newest = self._read()
        except InvalidRequestError as error:
            self.num_failed_reads += 1
            self._log_failure(error)
        else:
            self._log_change(self._newest)

    def _stamps(self) -> tuple[tuple[int, ...], ...]:
        return tuple(_stamp(path) for path in self._paths)

    @abstractmethod
    def _read(self) -> T:
        """Reads the files; raises InvalidRequestError that names the one at fault."""

    @abstractmethod
    def _log_failure(self, error: InvalidRequestError) -> None:
        """Logs that changed files cannot be used."""

    @abstractmethod
    def _log_change(self, content: T) -> None:
        """Logs that changed files are in use."""


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
