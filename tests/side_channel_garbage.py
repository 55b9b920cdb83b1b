"""What a stranger may send to NIXL's side channel, in bounded amounts."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

import msgspec
import zmq

from stream2llm.engine.side_channel import GET_METADATA, MAX_QUESTION_BYTES

_encode = msgspec.msgpack.encode


def bad_messages(rng: random.Random) -> list[list[bytes]]:
    """One of each kind, without the sender's identity; none is a question that has an answer."""
    question = _encode((GET_METADATA, 0, 0))
    return [
        [b"", rng.randbytes(40)],
        [b"", b""],
        [b"", question[:-2]],  # half of it
        [b"", question + b"\x00"],
        [b"", _encode({"get": "metadata"})],
        [b"", _encode((GET_METADATA, 0))],
        [b"", _encode((GET_METADATA, 0, 0, 0))],
        [b"", _encode((GET_METADATA, "0", "0"))],
        [b"", _encode((GET_METADATA, 0, 1.5))],
        [b"", _encode((GET_METADATA, 0, None))],
        [b"", _encode(("get_meta_msg", 0, 0))],
        [b"", _encode((b"set_meta_msg", 0, 0))],
        [b"", _encode((GET_METADATA, 7, 9))],  # no such rank
        [b"", _encode((GET_METADATA, -1, -1))],
        [b"", _encode((GET_METADATA, 2**63, 2**64 - 1))],
        [b"", b"\x91" * 200],  # lists in lists
        [b"", b"\xc6\xff\xff\xff\xff"],  # bytes of a length that does not follow
        [question],
        [b"x", question],
        [b"", question, question],
        [b""] * 5,
        [b"", b"\x00" * (MAX_QUESTION_BYTES + 1)],
    ]


NUM_BAD_MESSAGES = len(bad_messages(random.Random(0)))


def throw_garbage(host: str, port: int, rng: random.Random, num_connections: int = 2000) -> None:
    """All of it: bad messages, half messages, bytes of no protocol, connections that only open."""
    _send_bad_messages(host, port, rng)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    openings = [b"", b"\x00", greeting[:11], greeting, b"GET / HTTP/1.1\r\n\r\n"]
    for number in range(num_connections):
        opening = openings[number % len(openings)] or rng.randbytes(rng.randrange(64))
        # What listens may close it first.
        with suppress(ConnectionError), socket.create_connection((host, port), 10) as peer:
            if number % 7:
                peer.sendall(opening)


def _send_bad_messages(host: str, port: int, rng: random.Random) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as sender:
        sender.linger = 5_000
        sender.connect(f"tcp://{host}:{port}")
        for _ in range(5):
            for frames in bad_messages(rng):
                sender.send_multipart(frames)
