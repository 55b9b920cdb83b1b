"""NIXL's side channel against garbage, over real sockets and without an engine."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import pytest

pytest.importorskip("zmq")

import zmq

from stream2llm.engine import side_channel
from tests.side_channel_garbage import NUM_BAD_MESSAGES, bad_messages, throw_garbage

METADATA = {(0, 0): b"rank 0", (0, 1): b"rank 1"}


def a_free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def listening() -> Iterator[tuple[int, threading.Thread, list[int]]]:
    """A listener's port, its thread, and the exit codes it ended its process with."""
    ready, stop, exits = threading.Event(), threading.Event(), []
    port = a_free_port()
    thread = threading.Thread(
        target=side_channel.listen,
        args=(METADATA, ready, stop, "127.0.0.1", port, exits.append),
        daemon=True,
    )
    thread.start()
    assert ready.wait(10)
    try:
        yield port, thread, exits
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def answer_for(port: int, rank: int) -> list[bytes]:
    """What vLLM's reader would get."""
    with zmq.Context() as context, context.socket(zmq.REQ) as reader:
        reader.linger = 0
        reader.connect(f"tcp://127.0.0.1:{port}")
        reader.send(msgspec.msgpack.encode((side_channel.GET_METADATA, 0, rank)))
        assert reader.poll(10_000), "no answer"
        parts: list[bytes] = reader.recv_multipart()
        return parts


def test_garbage_is_dropped_and_the_next_reader_answered() -> None:
    with listening() as (port, thread, exits):
        throw_garbage("127.0.0.1", port, random.Random(1), num_connections=200)
        metadata, clock = answer_for(port, 1)
        assert metadata == METADATA[0, 1]
        assert isinstance(msgspec.msgpack.decode(clock), float)
        assert side_channel.ask("127.0.0.1", port, timeout_s=10) == ""
        assert thread.is_alive()
        assert exits == []


@pytest.mark.parametrize("number", range(NUM_BAD_MESSAGES))
def test_every_kind_of_bad_message_is_named_by_a_value_error(number: int) -> None:
    frames = bad_messages(random.Random(number))[number]
    with suppress(KeyError), pytest.raises(ValueError, match=r"."):
        # A rank that is not there is a well-formed question.
        raise KeyError(METADATA[side_channel.rank_asked_for(frames)])


def test_a_port_that_is_taken_ends_the_process_and_leaves_nobody_waiting() -> None:
    exits: list[int] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ready = threading.Event()
        port = taken.getsockname()[1]
        side_channel.listen(METADATA, ready, threading.Event(), "127.0.0.1", port, exits.append)
    assert ready.is_set()
    assert exits == [1]


def test_a_side_channel_that_nobody_listens_on_is_named() -> None:
    port = a_free_port()
    told = side_channel.ask("127.0.0.1", port, timeout_s=0.05)
    assert f"127.0.0.1:{port} gave no answer" in told


@pytest.mark.parametrize(("num_failures", "exit_codes"), [(4, []), (5, [1])])
def test_a_socket_that_breaks_is_made_anew_until_it_breaks_too_often(
    num_failures: int, exit_codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bind, answer = side_channel._bind, side_channel._answer
    fails = iter([False, *[True] * num_failures])
    breaks, bound = iter([True]), threading.Semaphore(0)

    def failing_bind(*args: Any) -> None:
        if next(fails, False):
            raise zmq.ZMQError(msg="no socket today")
        bind(*args)
        bound.release()

    def breaking_answer(*args: Any) -> None:
        if next(breaks, False):
            raise zmq.ZMQError(msg="the socket broke")
        answer(*args)

    monkeypatch.setattr(side_channel, "_bind", failing_bind)
    monkeypatch.setattr(side_channel, "_answer", breaking_answer)
    with listening() as (port, thread, exits):
        assert bound.acquire(timeout=10)
        with zmq.Context() as context, context.socket(zmq.DEALER) as reader:
            reader.linger = 0
            reader.connect(f"tcp://127.0.0.1:{port}")
            reader.send(b"the message at which it breaks")
            if exit_codes:
                thread.join(30)
            else:  # what the broken socket had got is lost with it
                assert bound.acquire(timeout=30)
                assert answer_for(port, 1)[0] == METADATA[0, 1]
        assert exits == exit_codes
        assert thread.is_alive() is not bool(exit_codes)


def test_a_huge_length_is_refused_without_the_memory_for_it() -> None:
    """A frame's header may say anything; libzmq would allocate it."""
    with listening() as (port, _, exits):
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(b"\xff" + struct.pack(">Q", 1) + b"\x7f\x03\x00NULL" + bytes(48))
            peer.sendall(b"\x02" + struct.pack(">Q", 2**60))
        assert answer_for(port, 0)[0] == METADATA[0, 0]
        assert exits == []
