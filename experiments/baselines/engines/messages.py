"""What travels between a driver and an engine's host process.

A frame is four bytes of length and a MessagePack map. All token ids are counted
and made by the driver, so no side tokenizes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from cost_profiles.decision import Mode
from stream2llm.serving.settings.worker_options import PrefillOptions

Kind = Literal["stock", "ours"]
KvRole = Literal["kv_producer", "kv_consumer"]
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What a host process starts."""

    kind: Kind
    model_path: str
    # Cores of all its processes.
    cores: tuple[int, ...]
    num_kv_blocks: int
    block_size: int
    token_budget: int
    max_num_seqs: int
    max_model_len: int
    # Part of a pair over vLLM's own NIXL connector; for the stock engine only.
    kv_role: KvRole | None = None
    # For our engine only.
    preemption: Mode = PrefillOptions().preemption


class Ask(msgspec.Struct, tag=True, frozen=True):
    """A whole prompt."""

    request_id: str
    token_ids: list[int]
    max_tokens: int
    # vLLM's `kv_transfer_params`.
    transfer: dict[str, Any] | None = None


class Feed(msgspec.Struct, tag=True, frozen=True):
    """More of a prompt for vLLM's streaming input; the first one opens it."""

    request_id: str
    token_ids: list[int]
    # With the last part the answer begins, of so many tokens.
    last: bool
    max_tokens: int


class Splice(msgspec.Struct, tag=True, frozen=True):
    """Our context event; the first one of a request opens the session."""

    request_id: str
    keep_tokens: int
    token_ids: list[int]
    seal: bool


class End(msgspec.Struct, tag=True, frozen=True):
    """The request's answer is no longer wanted; ignored if the request has ended."""

    request_id: str


class Command(msgspec.Struct, tag=True, frozen=True):
    """To the engine as a whole; a Reply with its number follows."""

    number: int
    name: Literal["reset", "counters", "policy"]
    argument: str = ""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The engine has started; what it turned out to be."""

    settings: dict[str, str | float]


class Tokens(msgspec.Struct, tag=True, frozen=True):
    """More tokens of an answer, how many of them are all that counts here."""

    request_id: str
    count: int
    finished: bool
    # With the last ones: vLLM's `kv_transfer_params`.
    transfer: dict[str, Any] | None = None


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The request has ended without a whole answer."""

    request_id: str
    error: str


class Reply(msgspec.Struct, tag=True, frozen=True):
    """To a command."""

    number: int
    value: dict[str, float]
    error: str = ""


ToHost = Ask | Feed | Splice | End | Command
FromHost = Ready | Tokens | Failed | Reply
# How an engine answers.
Send = Callable[[Tokens | Failed], None]
_ENCODER = msgspec.msgpack.Encoder()


def write(writer: asyncio.StreamWriter, message: ToHost | FromHost) -> None:
    """Sends without waiting: a driver must not be slowed down by whom it drives."""
    body = _ENCODER.encode(message)
    writer.write(len(body).to_bytes(_LENGTH_BYTES, "big") + body)


async def read(reader: asyncio.StreamReader, kind: Any) -> Any:
    """The next message of one of these kinds; None when the other side is gone."""
    try:
        head = await reader.readexactly(_LENGTH_BYTES)
        body = await reader.readexactly(int.from_bytes(head, "big"))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return msgspec.msgpack.decode(body, type=kind)
