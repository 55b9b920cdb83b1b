"""A DNS server on loopback that knows one name, whose addresses a test changes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import Any

NAME = "routers.example"
_HEADER = struct.Struct("!6H")
_RESPONSE = 0x8580  # an answer of the server that decides, without an error
_A, _IN, _TTL_S = 1, 1, 0
# Where in a message the name stands that is asked for.
_NAME_POINTER = 0xC000 | _HEADER.size


class NameServer(asyncio.DatagramProtocol):
    """Answers each question with the present addresses."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.num_asked = 0

    def target(self, port: int) -> str:
        """What gRPC resolves here."""
        host, own_port = self._transport.get_extra_info("sockname")
        return f"dns://{host}:{own_port}/{NAME}:{port}"

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.num_asked += 1
        self._transport.sendto(self._answer(data), addr)

    def _answer(self, data: bytes) -> bytes:
        number, *_ = _HEADER.unpack_from(data)
        end_of_name = data.index(b"\0", _HEADER.size) + 1
        (kind,) = struct.unpack_from("!H", data, end_of_name)
        found = [IPv4Address(each).packed for each in self.addresses] if kind == _A else []
        header = _HEADER.pack(number, _RESPONSE, 1, len(found), 0, 0)
        records = (
            struct.pack("!3HIH", _NAME_POINTER, _A, _IN, _TTL_S, len(each)) + each for each in found
        )
        return header + data[_HEADER.size : end_of_name + 4] + b"".join(records)


@asynccontextmanager
async def a_name_server() -> AsyncIterator[NameServer]:
    """Serves on a free port meanwhile."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        transport.close()
