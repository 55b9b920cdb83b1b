"""NIXL's side channel, made robust against arbitrary messages.

An engine gives its NIXL metadata to any client of a TCP port. vLLM's thread behind that
port ends at the first message that is not the one question it expects, and no reader can
shake hands with the engine from then on. Ours drops such messages and continues; it
answers the question as vLLM's does:

    [b"", msgpack (b"get_meta_msg", pp rank, tp rank)] -> [b"", metadata, msgpack perf_counter]

The port has no authentication, so the cost of one peer is limited: sizes, queues, and
connections without a sign of life. When the thread cannot continue at all, the engine's
process ends, so that the worker is replaced instead of staying one that cannot be read
from.

`listen` runs in the process of vLLM's EngineCore.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import zmq

_log = logging.getLogger(__name__)

# vLLM's name for the question.
GET_METADATA = b"get_meta_msg"
# The question is 20 bytes long.
MAX_QUESTION_BYTES = 256
# Maximum number of answers that wait for a peer which does not read them.
_MAX_WAITING_ANSWERS = 16
# Time limit for a connection's handshake and for its answers to pings.
_HANDSHAKE_LIMIT_MS = 5_000
_PING_EVERY_MS = 5_000
_PING_LIMIT_MS = 15_000
# Interval at which the thread checks whether to end.
_LOOK_EVERY_MS = 1_000
# Minimum time between two log lines about dropped messages.
_LOG_EVERY_S = 10.0
# Number of consecutive broken sockets after which the thread gives up.
_MAX_BROKEN_SOCKETS = 5

Rank = tuple[int, int]
_Question = tuple[bytes, int, int]


def install(connector_scheduler: Any) -> None:
    """Makes a NIXL connector's scheduler half listen with `listen`.

    Call it before vLLM starts the thread, which is when the workers have registered memory.
    """
    connector_scheduler._nixl_handshake_listener = listen


def listen(
    metadata: Mapping[Rank, bytes],
    ready: threading.Event,
    stop: threading.Event,
    host: str,
    port: int,
    end_process: Callable[[int], Any] = os._exit,
) -> None:
    """Answers until `stop` is set; has the signature of vLLM's listener.

    Calls `end_process` when it cannot: the engine would look healthy, but be unreadable.
    """
    try:
        _listen(metadata, ready, stop, _address(host, port))
    except BaseException:
        _log.exception("side_channel_ended host=%s port=%s: the engine ends with it", host, port)
        end_process(1)
        # The engine's start waits for this.
        ready.set()


def _listen(
    metadata: Mapping[Rank, bytes], ready: threading.Event, stop: threading.Event, address: str
) -> None:
    dropped = _Dropped()
    num_broken = 0
    while not stop.is_set():
        try:
            with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
                _bind(socket, address)
                ready.set()
                while not stop.is_set():
                    if socket.poll(_LOOK_EVERY_MS):
                        _answer(socket, metadata, dropped)
                        num_broken = 0
        except zmq.ZMQError:
            num_broken += 1
            if not ready.is_set() or num_broken > _MAX_BROKEN_SOCKETS:
                raise
            _log.exception("side_channel_broke address=%s: listening anew", address)


def _bind(socket: zmq.Socket[bytes], address: str) -> None:
    socket.linger = 0
    socket.setsockopt(zmq.IPV6, int("[" in address))
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_QUESTION_BYTES)
    socket.setsockopt(zmq.SNDHWM, _MAX_WAITING_ANSWERS)
    socket.setsockopt(zmq.RCVHWM, _MAX_WAITING_ANSWERS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_LIMIT_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _PING_EVERY_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _PING_LIMIT_MS)
    socket.bind(address)


def _answer(socket: zmq.Socket[bytes], metadata: Mapping[Rank, bytes], dropped: _Dropped) -> None:
    """Handles one message; drops it when it is not the question."""
    frames = socket.recv_multipart()
    try:
        rank = rank_asked_for(frames[1:])
        answer = metadata[rank]
    except (ValueError, KeyError) as error:
        dropped.note(error)
        return
    clock = msgspec.msgpack.encode(_perf_counter_s())
    try:
        socket.send_multipart((frames[0], b"", answer, clock), flags=zmq.NOBLOCK)
    except zmq.Again as error:
        dropped.note(error)


def rank_asked_for(frames: list[bytes]) -> Rank:
    """Returns the (pipeline, tensor) rank a message asks for; raises ValueError for others."""
    if len(frames) != 2 or frames[0]:
        raise ValueError(f"a message of {len(frames)} parts")
    try:
        word, pp_rank, tp_rank = msgspec.msgpack.decode(frames[1], type=_Question)
    except (msgspec.DecodeError, RecursionError) as error:  # ValidationError is a DecodeError
        raise ValueError(str(error)) from error
    if word != GET_METADATA:
        raise ValueError("not the question for metadata")
    return pp_rank, tp_rank


def ask(host: str, port: int, timeout_s: float) -> str:
    """Asks an engine's side channel as a reader would; returns "" or what is wrong. Blocks."""
    question = msgspec.msgpack.encode((GET_METADATA, 0, 0))
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        address = _address(host, port)
        socket.setsockopt(zmq.IPV6, int("[" in address))
        socket.connect(address)
        socket.send(question)
        if not socket.poll(round(timeout_s * 1e3)):
            return f"its NIXL side channel at {host}:{port} gave no answer for {timeout_s:g} s"
        num_parts = len(socket.recv_multipart())
    return "" if num_parts == 2 else f"its NIXL side channel answered in {num_parts} parts"


class _Dropped:
    """Counts dropped messages, and logs them at intervals."""

    def __init__(self) -> None:
        self._num_since_log = 0
        self._logged_s = -_LOG_EVERY_S

    def note(self, why: Exception) -> None:
        self._num_since_log += 1
        now_s = _perf_counter_s()
        if now_s - self._logged_s < _LOG_EVERY_S:
            return
        _log.warning("side_channel_dropped messages=%d last=%r", self._num_since_log, str(why))
        self._num_since_log, self._logged_s = 0, now_s


def _address(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _perf_counter_s() -> float:
    # vLLM sets its deadlines by this clock of this process.
    return time.perf_counter()  # noqa: TID251
