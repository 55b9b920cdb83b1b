"""Flow control of one call in one direction, and its messages from their pieces. Pure.

A sender begins a message while it has credit, however long the message is; the receiver gives
credit back when its reader takes messages. So a call whose reader is slow holds up no other,
and holds at most a window and one message.
"""

from __future__ import annotations

# proto/stream2llm/v1/worker.proto names both.
WINDOW_BYTES = 65_536
# Counted with each message, so that empty ones are bounded too.
_MESSAGE_BYTES = 64


class ProtocolError(Exception):
    """The other end breaks the protocol: a bug, or it is none of ours."""


class MessageTooLargeError(Exception):
    """A message is longer than this side accepts."""


def counted_bytes(num_bytes: int) -> int:
    """What a message of `num_bytes` bytes takes from a window."""
    return num_bytes + _MESSAGE_BYTES


class SendCredit:
    """What the sender of one call may send; less than nothing behind a long message."""

    def __init__(self) -> None:
        self._left_bytes = WINDOW_BYTES

    @property
    def may_send(self) -> bool:
        """Whether a message may be begun."""
        return self._left_bytes > 0

    def sent(self, num_bytes: int) -> None:
        """A message of `num_bytes` bytes is sent."""
        self._left_bytes -= counted_bytes(num_bytes)

    def granted(self, credit_bytes: int) -> None:
        """The receiver has taken messages; raises ProtocolError when it took more than was sent."""
        self._left_bytes += credit_bytes
        if self._left_bytes > WINDOW_BYTES:
            raise ProtocolError("credit for more than was sent")


class Inbound:
    """The messages that one call receives."""

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._pieces: list[bytes] = []
        self._num_piece_bytes = 0
        # Begun, and not given back.
        self._owed_bytes = 0
        # Taken by the reader, and not given back.
        self._taken_bytes = 0

    def add(self, data: bytes, *, is_last: bool) -> bytes | None:
        """Adds a piece; returns the message that it completes.

        Raises MessageTooLargeError, and ProtocolError when it was begun without credit.
        """
        if not self._pieces and self._owed_bytes >= WINDOW_BYTES:
            raise ProtocolError("a message without credit for it")
        if self._num_piece_bytes + len(data) > self._max_message_bytes:
            raise MessageTooLargeError(
                f"a message has more than {self._max_message_bytes} bytes, the limit here"
            )
        if not is_last and not data:
            raise ProtocolError("an empty piece of a message")
        if is_last and not self._pieces:
            return self._whole(data)
        self._pieces.append(data)
        self._num_piece_bytes += len(data)
        if not is_last:
            return None
        pieces, self._pieces, self._num_piece_bytes = self._pieces, [], 0
        return self._whole(b"".join(pieces))

    def _whole(self, message: bytes) -> bytes:
        self._owed_bytes += counted_bytes(len(message))
        return message

    def taken(self, num_bytes: int) -> int:
        """The reader has taken a message; returns the credit to give back now, mostly 0."""
        self._taken_bytes += counted_bytes(num_bytes)
        if self._taken_bytes < WINDOW_BYTES // 2:
            return 0
        credit_bytes, self._taken_bytes = self._taken_bytes, 0
        self._owed_bytes -= credit_bytes
        return credit_bytes
