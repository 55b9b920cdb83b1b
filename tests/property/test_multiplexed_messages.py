"""What goes through an outbox and a batch's frames, for any calls and any sizes of messages.

1. A call's messages arrive whole, and in order.
2. No batch is longer than gRPC takes.
3. Nothing is left behind, and nothing is counted twice.
4. A short message waits for no more than the batches before it, and one piece of each long one.
5. A sender with credit never offends the receiver, whenever that takes what has come; and there is
   always credit when all is taken.
"""

from __future__ import annotations

from collections import defaultdict, deque

from hypothesis import given, settings
from hypothesis import strategies as st

from stream2llm.api.v1.worker_pb2 import ConnectResponse, Frame
from stream2llm.serving.mux.flow import WINDOW_BYTES, Inbound, SendCredit
from stream2llm.serving.mux.outbox import Outbox, Ticket

MAX_BYTES = 65_536
SIZES = st.sampled_from([0, 1, 40, 3000, 16_384, 16_385, 50_000, 65_536])
MESSAGES = st.lists(st.tuples(st.integers(1, 4), SIZES, st.booleans()), max_size=40)


def message(number: int, num_bytes: int) -> bytes:
    """One that is like no other, where it has room for that."""
    return (number.to_bytes(2, "big") * num_bytes)[:num_bytes]


@given(MESSAGES)
@settings(derandomize=True)
def test_messages_arrive_whole_in_order_and_in_batches_that_are_taken(messages) -> None:
    outbox, tickets = Outbox(MAX_BYTES), []
    sent: dict[int, list[bytes]] = defaultdict(list)
    come: dict[int, list[bytes]] = defaultdict(list)
    inbound = {call_id: Inbound(MAX_BYTES) for call_id in range(1, 5)}

    def deliver() -> None:
        frames, taken = outbox.take()
        assert ConnectResponse(frames=frames).ByteSize() <= MAX_BYTES
        for frame in frames:
            data, is_last = frame.message or frame.piece, frame.WhichOneof("kind") == "message"
            whole = inbound[frame.call_id].add(data, is_last=is_last)
            if whole is not None:
                come[frame.call_id].append(whole)
                inbound[frame.call_id].taken(len(whole))
        assert all(ticket.is_taken for ticket in taken)

    for number, (call_id, num_bytes, takes) in enumerate(messages):
        tickets.append(Ticket())
        sent[call_id].append(message(number, num_bytes))
        outbox.push_message(call_id, sent[call_id][-1], tickets[-1])
        if takes:
            deliver()
    while outbox.num_bytes:
        deliver()
    assert come == sent
    assert outbox.take() == ([], [])
    assert all(ticket.is_taken for ticket in tickets)


@given(MESSAGES, st.integers(1, 4))
@settings(derandomize=True)
def test_nothing_is_left_of_a_call_that_is_dropped(messages, dropped) -> None:
    outbox = Outbox(MAX_BYTES)
    for number, (call_id, num_bytes, _) in enumerate(messages):
        outbox.push_message(call_id, message(number, num_bytes))
    outbox.drop(dropped)
    outbox.push(Frame(call_id=dropped, credit_bytes=1))
    frames = []
    while outbox.num_bytes:
        frames += outbox.take()[0]
    kinds = [frame.WhichOneof("kind") for frame in frames if frame.call_id == dropped]
    assert kinds == ["credit_bytes"]
    others = [frame for frame in frames if frame.WhichOneof("kind") == "message"]
    assert len(others) == sum(call_id != dropped for call_id, *_ in messages)


@given(st.integers(1, 6), st.integers(0, 200))
@settings(derandomize=True)
def test_a_short_message_passes_long_ones(num_long, num_bytes) -> None:
    outbox, short = Outbox(MAX_BYTES), Ticket()
    for call_id in range(1, num_long + 1):
        outbox.push_message(call_id, bytes(MAX_BYTES * 10))
    outbox.push_message(9, bytes(num_bytes), short)
    num_passed = 0
    while not short.is_taken:
        num_passed += sum(len(frame.piece) > 0 for frame in outbox.take()[0])
    # It may be in the batch of the first pieces, or behind the second of some.
    assert num_passed <= 2 * num_long


@given(st.lists(st.tuples(SIZES, st.integers(0, 3)), max_size=60))
@settings(derandomize=True)
def test_a_sender_that_heeds_its_credit_is_never_wrong_and_never_stuck(steps) -> None:
    credit, inbound = SendCredit(), Inbound(MAX_BYTES)
    unread: deque[int] = deque()
    for num_bytes, num_taken in steps:
        if credit.may_send:
            credit.sent(num_bytes)
            inbound.add(bytes(num_bytes), is_last=True)
            unread.append(num_bytes)
        assert sum(unread) <= WINDOW_BYTES + MAX_BYTES
        for _ in range(min(num_taken, len(unread))):
            credit.granted(inbound.taken(unread.popleft()))
    while unread:
        credit.granted(inbound.taken(unread.popleft()))
    assert credit.may_send
