"""The frames that wait to be sent on one stream; decides what goes out together. Pure.

Frames of one call keep their order. A long message goes out in pieces, and lets others pass
between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from stream2llm.api.v1.worker_pb2 import Frame

# A message that is longer goes in pieces of this size, or less.
_MOST_PIECE_BYTES = 65_536
# No more frames are added to a batch of so many bytes, at most.
_MOST_BATCH_BYTES = 262_144
# What a frame takes besides its message, at most.
_FRAME_BYTES = 32


def _nothing() -> None:
    pass


class Ticket:
    """Given with a frame: what has become of it."""

    __slots__ = ("_on_sent", "is_sent", "is_taken")

    def __init__(self, on_sent: Callable[[], object] = _nothing) -> None:
        self._on_sent = on_sent
        # From then on the frame may have reached the other end.
        self.is_taken = False
        self.is_sent = False

    def sent(self) -> None:
        """gRPC has taken the batch with the frame."""
        self.is_sent = True
        self._on_sent()


# A frame, its size, and its ticket.
_Entry = tuple[Frame, int, Ticket | None]


class Outbox:
    """What one end of a stream has to send."""

    def __init__(self, max_message_bytes: int) -> None:
        """`max_message_bytes` is the most that gRPC takes: no batch is longer."""
        self._piece_bytes = min(_MOST_PIECE_BYTES, max_message_bytes // 4)
        self._batch_bytes = min(_MOST_BATCH_BYTES, max_message_bytes // 2)
        # In order; the number of a call with a long message stands for the next of its frames.
        self._waiting: deque[_Entry | int] = deque()
        # What is left of the message of each of those calls, and what follows it.
        self._long: dict[int, deque[_Entry]] = {}
        self.num_bytes = 0

    def push(self, frame: Frame, ticket: Ticket | None = None) -> None:
        """Adds a frame that is not part of a message."""
        self._push(frame, frame.ByteSize(), ticket)

    def push_message(self, call_id: int, data: bytes, ticket: Ticket | None = None) -> None:
        """Adds a message."""
        if len(data) <= self._piece_bytes:
            self._push(Frame(call_id=call_id, message=data), len(data), ticket)
            return
        if call_id not in self._long:
            self._long[call_id] = deque()
            self._waiting.append(call_id)
        *pieces, last = _pieces(data, self._piece_bytes)
        for piece in pieces:
            self._push(Frame(call_id=call_id, piece=piece), len(piece), None)
        self._push(Frame(call_id=call_id, message=last), len(last), ticket)

    def _push(self, frame: Frame, num_bytes: int, ticket: Ticket | None) -> None:
        num_bytes += _FRAME_BYTES
        self.num_bytes += num_bytes
        behind = self._long.get(frame.call_id) if self._long else None
        (self._waiting if behind is None else behind).append((frame, num_bytes, ticket))

    def drop_long(self, call_id: int) -> None:
        """Forgets the rest of a call's long message, and what follows it: the call has ended."""
        for _, num_bytes, _ in self._long.pop(call_id, ()):
            self.num_bytes -= num_bytes

    def drop(self, call_id: int) -> None:
        """Forgets all frames of a call."""
        self.drop_long(call_id)
        kept: deque[_Entry | int] = deque()
        for entry in self._waiting:
            if isinstance(entry, int) or entry[0].call_id != call_id:
                kept.append(entry)
            else:
                self.num_bytes -= entry[1]
        self._waiting = kept

    def take(self) -> tuple[list[Frame], list[Ticket]]:
        """Removes and returns what goes out together, and its tickets; empty when nothing waits."""
        frames: list[Frame] = []
        tickets: list[Ticket] = []
        left_bytes = self._batch_bytes
        while self._waiting and left_bytes > 0:
            entry = self._waiting.popleft()
            if isinstance(entry, int):
                if entry not in self._long:
                    continue  # dropped
                entry = self._next_of(entry)
            frame, num_bytes, ticket = entry
            left_bytes -= num_bytes
            self.num_bytes -= num_bytes
            frames.append(frame)
            if ticket is not None:
                ticket.is_taken = True
                tickets.append(ticket)
        return frames, tickets

    def _next_of(self, call_id: int) -> _Entry:
        """The next frame of a call with a long message; the one after it waits for its turn."""
        behind = self._long[call_id]
        entry = behind.popleft()
        if behind:
            self._waiting.append(call_id)
        else:
            del self._long[call_id]
        return entry


def _pieces(data: bytes, num_bytes: int) -> Iterator[bytes]:
    for begin in range(0, len(data), num_bytes):
        yield data[begin : begin + num_bytes]
