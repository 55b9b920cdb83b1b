"""What one end does not accept of the other."""

from __future__ import annotations

import grpc
import pytest

from stream2llm.serving.mux.flow import (
    WINDOW_BYTES,
    Inbound,
    MessageTooLargeError,
    ProtocolError,
    SendCredit,
)
from stream2llm.serving.mux.statuses import end_of, status_of


def test_a_message_without_credit_is_an_offence() -> None:
    inbound = Inbound(1 << 20)
    inbound.add(bytes(WINDOW_BYTES), is_last=True)
    with pytest.raises(ProtocolError, match="without credit"):
        inbound.add(b"", is_last=True)


def test_messages_of_no_bytes_take_credit_too() -> None:
    credit, inbound = SendCredit(), Inbound(1 << 20)
    while credit.may_send:
        credit.sent(0)
        inbound.add(b"", is_last=True)
    with pytest.raises(ProtocolError, match="without credit"):
        inbound.add(b"", is_last=True)


def test_credit_for_what_was_not_sent_is_an_offence() -> None:
    credit = SendCredit()
    credit.sent(1000)
    with pytest.raises(ProtocolError, match="credit"):
        credit.granted(2000)


def test_pieces_without_an_end_do_not_pile_up() -> None:
    inbound = Inbound(1000)
    assert inbound.add(bytes(600), is_last=False) is None
    with pytest.raises(MessageTooLargeError, match="1000"):
        inbound.add(bytes(600), is_last=False)
    with pytest.raises(ProtocolError, match="empty piece"):
        Inbound(1000).add(b"", is_last=False)


def test_a_status_comes_as_it_was_given() -> None:
    trailing = (("a-bin", b"\xff\x00"), ("b", "text"))
    final = status_of(end_of(grpc.StatusCode.NOT_FOUND, "none", trailing))
    assert (final.code(), final.details()) == (grpc.StatusCode.NOT_FOUND, "none")
    assert tuple(final.trailing_metadata()) == trailing


def test_a_status_that_is_too_long_is_cut() -> None:
    end = end_of(grpc.StatusCode.INTERNAL, "x" * 100_000, (("a", "b"),))
    assert end.ByteSize() < 2000
    assert status_of(end).code() is grpc.StatusCode.INTERNAL


def test_a_code_that_grpc_does_not_have_is_unknown() -> None:
    end = end_of(grpc.StatusCode.OK)
    end.code = 99
    assert status_of(end).code() is grpc.StatusCode.UNKNOWN
