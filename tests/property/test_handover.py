"""The pure parts of the streamed hand-over.

1. An offer is whole blocks, computed and stable, more than was offered before,
   and one at a time; pins are counted right and end exactly once.
2. A fetch never takes what answers need, nor what was used more recently.
3. Those who decode lose the set share of their time at most.
4. Every block that crossed ahead is counted once: used or wasted.
5. A fetch is of the tokens that its offer is the KV of; they are still those of the
   sequence, or it is in vain. Every offer ends exactly once.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from decode_worker.fetch_ledger import FetchLedger, Settled
from decode_worker.pace import FetchPace
from decode_worker.room import Room, RoomView, room_for
from prefill_worker.offers import Due, MemoryView, OfferLimits, OfferTable, OfferView, next_offer
from router.kv_prefetch_log import KvPrefetchLog, Offered, OfferVerdict, Spliced
from router.stability import Stability, num_sure
from stream2llm.serving.sessions.prefix import as_tokens

SIZE = 4
counts = st.integers(0, 200)


# -- 1: offers ---------------------------------------------------------------------


@given(
    view=st.builds(OfferView, counts, counts, counts, st.booleans(), st.booleans()),
    memory=st.builds(MemoryView, counts, is_short=st.booleans()),
    min_tokens=st.integers(1, 50),
    max_pinned=counts,
)
def test_an_offer_is_whole_new_stable_blocks(
    view: OfferView, memory: MemoryView, min_tokens: int, max_pinned: int
) -> None:
    due = next_offer(view, memory, OfferLimits(SIZE, min_tokens, max_pinned))
    if due.num_tokens:
        assert due.num_tokens % SIZE == 0
        assert view.num_offered_tokens < due.num_tokens
        assert due.num_tokens <= min(view.num_computed_tokens, view.num_stable_tokens)
        assert not view.is_in_flight
        assert not memory.is_short
        assert memory.num_pinned_blocks + due.num_tokens // SIZE <= max_pinned
        if view.has_work:
            assert due.num_tokens - view.num_offered_tokens >= min_tokens
    else:
        assert due.waits_for_memory <= (not view.is_in_flight)


class OfferMachine(RuleBasedStateMachine):
    """Sessions that stream, readers that end or die, against a plain dict of pins."""

    def __init__(self) -> None:
        super().__init__()
        self.table = OfferTable(OfferLimits(SIZE, min_tokens=6, max_pinned_blocks=40), lease_s=10)
        self.sequences: dict[str, list[int]] = {}
        self.pins: dict[str, tuple[int, ...]] = {}
        self.next_block = 0
        self.tables: dict[str, list[int]] = {}
        self.now_s = 0.0
        self.num_opened = 0

    @rule(length=st.integers(1, 60))
    def open(self, length: int) -> None:
        self.num_opened += 1
        name = f"s{self.num_opened}"
        self.sequences[name] = [self.num_opened] * length
        self.tables[name] = []
        self.table.spliced(name, 0, length)

    @precondition(lambda self: self.sequences)
    @rule(which=counts, keep=counts, length=st.integers(0, 60), stable=counts)
    def splice(self, which: int, keep: int, length: int, stable: int) -> None:
        name = sorted(self.sequences)[which % len(self.sequences)]
        keep = min(keep, len(self.sequences[name]))
        self.sequences[name] = self.sequences[name][:keep] + [self.num_opened] * length
        del self.tables[name][keep // SIZE :]
        self.table.spliced(name, keep, min(stable, len(self.sequences[name])))

    @precondition(lambda self: self.sequences)
    @rule(which=counts, computed=counts, has_work=st.booleans(), is_short=st.booleans())
    def step(self, which: int, computed: int, has_work: bool, is_short: bool) -> None:
        name = sorted(self.sequences)[which % len(self.sequences)]
        computed = min(computed, len(self.sequences[name]))
        while len(self.tables[name]) < -(-computed // SIZE):
            self.next_block += 1
            self.tables[name].append(self.next_block)
        due = self.table.due(name, computed, has_work=has_work, is_short=is_short)
        if due.num_tokens:
            blocks = tuple(self.tables[name][: due.num_tokens // SIZE])
            offer = self.table.make(name, blocks, self.now_s)
            assert offer.offer_id not in self.pins, "an offer's name comes twice"
            assert offer.deadline_s == self.now_s + 10
            self.pins[offer.offer_id] = blocks
            again = self.table.due(name, computed, has_work=False, is_short=False)
            assert again == Due(), "two offers of one session are in flight"

    @precondition(lambda self: self.pins)
    @rule(which=counts)
    def read_or_refused_or_expired(self, which: int) -> None:
        name = sorted(self.pins)[which % len(self.pins)]
        assert self.table.end(name).block_ids == self.pins.pop(name)
        assert self.table.end(name) is None, "an offer ended twice"

    @precondition(lambda self: self.sequences)
    @rule(which=counts)
    def end_session(self, which: int) -> None:
        name = sorted(self.sequences)[which % len(self.sequences)]
        del self.sequences[name], self.tables[name]
        self.table.forget(name)

    @invariant()
    def pins_are_counted(self) -> None:
        assert {o.offer_id: o.block_ids for o in self.table.offers()} == self.pins
        assert self.table.num_offers == len(self.pins)
        assert self.table.num_pinned_blocks == sum(map(len, self.pins.values()))
        assert self.table.num_pinned_blocks <= 40

    def teardown(self) -> None:
        for name in list(self.pins):
            self.table.end(name)
        assert not self.table.num_pinned_blocks


TestOffers = OfferMachine.TestCase


def test_a_session_that_is_through_offers_even_one_block() -> None:
    limits, memory = OfferLimits(SIZE, min_tokens=100), MemoryView(0, is_short=False)
    caught_up = OfferView(50, 50, 44, has_work=False, is_in_flight=False)
    assert next_offer(caught_up, memory, limits) == Due(48)
    busy = OfferView(50, 90, 44, has_work=True, is_in_flight=False)
    assert next_offer(busy, memory, limits) == Due()


def test_short_memory_puts_an_offer_off() -> None:
    view = OfferView(50, 50, 0, has_work=False, is_in_flight=False)
    limits = OfferLimits(SIZE, max_pinned_blocks=20)
    assert next_offer(view, MemoryView(0, is_short=True), limits) == Due(waits_for_memory=True)
    assert next_offer(view, MemoryView(9, is_short=False), limits) == Due(waits_for_memory=True)
    assert next_offer(view, MemoryView(8, is_short=False), limits) == Due(48)


# -- what is stable ------------------------------------------------------------------


def test_appended_documents_are_stable_until_an_update_comes() -> None:
    stability = Stability(num_prefix_tokens=5)
    assert stability.appended(5) == 5
    assert stability.appended(40) == 40
    assert stability.updated(num_kept_tokens=20) == 20
    assert stability.appended(60) == 20, "in update-mode a new document is no more than a guess"
    assert stability.sealed(70) == 70


def test_a_document_is_stable_when_it_has_survived_an_update() -> None:
    stability = Stability(num_prefix_tokens=5)
    stability.appended(5)
    assert stability.updated(num_kept_tokens=5) == 5
    assert stability.updated(num_kept_tokens=30) == 30
    assert stability.updated(num_kept_tokens=0) == 5, "the prefix never changes"


def test_a_document_that_the_client_is_sure_of_need_not_survive_first() -> None:
    assert num_sure([0.95, 1.0, 0.5, 1.0]) == 2
    assert num_sure([None, 1.0]) == 0
    assert Stability(num_prefix_tokens=5).updated(num_kept_tokens=5, num_sure_tokens=30) == 30


# -- 2: room ------------------------------------------------------------------------


@given(view=st.builds(RoomView, *[counts] * 5))
def test_a_fetch_takes_only_what_nobody_misses(view: RoomView) -> None:
    room = room_for(view)
    if room is Room.YES:
        assert view.num_missing
        assert view.num_free - view.num_missing - view.num_free_hits >= view.num_reserved
        assert view.num_yielding >= view.num_missing
    assert (room is Room.NOTHING_TO_FETCH) == (not view.num_missing)


# -- 3: pace -------------------------------------------------------------------------


@given(share=st.floats(0.01, 1.0), fetches=st.lists(st.floats(0.001, 2.0), min_size=1, max_size=30))
def test_before_anything_is_known_fetches_take_the_share_of_time_at_most(
    share: float, fetches: list[float]
) -> None:
    pace, now, spent, last = FetchPace(share), 0.0, 0.0, 0.0
    for fetch_s in fetches:
        while not pace.may_begin(now, num_decoding=1):
            now += 0.01
        assert spent <= share * now * 1.001 + 1e-9
        pace.note_fetch(now, now + fetch_s)
        spent, last = spent + fetch_s, fetch_s
        now += fetch_s
    assert last


def test_while_nobody_decodes_nothing_waits() -> None:
    pace = FetchPace(0.01)
    pace.note_fetch(0.0, 5.0)
    assert not pace.may_begin(5.1, num_decoding=1)
    assert pace.may_begin(5.1, num_decoding=0)


def test_fetches_that_slow_no_answer_down_come_more_often() -> None:
    pace = FetchPace(0.05)
    for _ in range(200):
        pace.note_step(0.010, 4, is_fetching=False)
        pace.note_step(0.0103, 4, is_fetching=True)
    pace.note_fetch(0.0, 1.0)
    assert pace.may_begin(1.0, num_decoding=4)


# -- 4: the ledger ---------------------------------------------------------------------


@given(
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 15)), max_size=20),
    local=st.integers(0, 70),
)
def test_every_block_that_crossed_is_used_or_wasted(
    events: list[tuple[bool, int]], local: int
) -> None:
    ledger, crossed, here = FetchLedger(SIZE), 0, 0
    for is_fetch, number in events:
        if is_fetch and number > here:
            ledger.fetched(number * SIZE, number - here)
            crossed, here = crossed + number - here, number
        elif not is_fetch:
            ledger.spliced(number * SIZE + 1)
            here = min(here, number)
    settled = ledger.settle(num_prompt_tokens=70, num_local_tokens=local)
    assert settled.prefetched + settled.wasted == crossed
    assert settled.prefetched <= local // SIZE
    assert settled.after_seal == -(-(70 - local) // SIZE)
    assert ledger.give_up() == Settled()


# -- 5: the router's log ---------------------------------------------------------------


class KvPrefetchLogMachine(RuleBasedStateMachine):
    """Splices, offers that lag behind them, and fetches that end late, against plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.log = KvPrefetchLog[int]()
        # By revision; and the newest one that prefill has seen.
        self.sequences: list[list[int]] = [[]]
        self.seen = 0
        # What each offer is the KV of, by its number; and those that came to an end.
        self.promised: list[list[int]] = []
        self.over: list[int] = []
        self.num_changes = 0

    @rule(keep=counts, length=st.integers(0, 8))
    def splice(self, keep: int, length: int) -> None:
        keep = min(keep, len(self.sequences[-1]))
        self.num_changes += 1
        sequence = self.sequences[-1][:keep] + [self.num_changes] * length
        fetch = self.log.at_decode
        was_in_vain = fetch is not None and self.log.is_in_vain(fetch)
        self.sequences.append(sequence)
        spliced = self.log.spliced(len(self.sequences) - 1, keep, as_tokens(sequence))
        self.over += spliced.released
        assert all(len(self.promised[number]) > keep for number in spliced.released)
        changes = fetch is not None and fetch.what.num_tokens > keep
        assert spliced.aborts == (changes and not was_in_vain), (
            "aborted once, and only if it changes"
        )

    @rule(lead=st.integers(0, 3))
    def prefill_sees(self, lead: int) -> None:
        self.seen = min(self.seen + lead, len(self.sequences) - 1)
        self.log.seen(self.seen)

    @rule(num_tokens=st.integers(1, 8))
    def offer(self, num_tokens: int) -> None:
        tokens = self.sequences[self.seen][:num_tokens]
        number = len(self.promised)
        self.promised.append(tokens)
        verdict = self.log.offered(Offered(self.seen, len(tokens)), number)
        if verdict is OfferVerdict.STALE:
            self.over.append(number)
        else:
            assert self.sequences[-1][: len(tokens)] == tokens

    @rule()
    def send(self) -> None:
        fetch = self.log.next()
        if fetch is not None:
            assert fetch.tokens.tolist() == self.promised[fetch.handover]

    @precondition(lambda self: self.log.at_decode is not None)
    @rule()
    def fetch_ends(self) -> None:
        fetch = self.log.at_decode
        assert fetch is not None
        self.log.ended(fetch)
        self.over.append(fetch.handover)

    @invariant()
    def what_is_at_decode_is_true_or_in_vain(self) -> None:
        fetch = self.log.at_decode
        if fetch is not None:
            assert fetch.tokens.tolist() == self.promised[fetch.handover]
            is_true = self.sequences[-1][: len(fetch.tokens)] == fetch.tokens.tolist()
            assert is_true or self.log.is_in_vain(fetch)

    def teardown(self) -> None:
        self.over += self.log.close()
        if self.log.at_decode is not None:
            self.over.append(self.log.at_decode.handover)
        assert sorted(self.over) == list(range(len(self.promised))), "an offer ends exactly once"


TestKvPrefetchLog = KvPrefetchLogMachine.TestCase


def test_an_offer_behind_a_later_splice_is_stale() -> None:
    log = KvPrefetchLog[str]()
    log.spliced(1, 0, as_tokens([1] * 32))
    log.spliced(2, 30, as_tokens([1] * 30 + [2] * 2))
    assert log.offered(Offered(revision=1, num_tokens=32), "stale") is OfferVerdict.STALE
    assert log.offered(Offered(revision=1, num_tokens=28), "fresh") is OfferVerdict.FETCH
    fetch = log.next()
    assert fetch is not None
    assert log.spliced(3, 28, as_tokens([1] * 28)) == Spliced(), "the fetch stays as it is"
    assert log.spliced(4, 27, as_tokens([1] * 27)) == Spliced(aborts=True)
    assert log.spliced(5, 0, as_tokens([])) == Spliced(), "it is aborted once"
    log.ended(fetch)
    assert log.spliced(6, 0, as_tokens([])) == Spliced()


def test_offers_are_fetched_one_at_a_time_with_the_tokens_they_came_with() -> None:
    log = KvPrefetchLog[str]()
    log.spliced(1, 0, as_tokens([1, 2, 3, 4]))
    log.offered(Offered(revision=1, num_tokens=2), "first")
    log.offered(Offered(revision=1, num_tokens=4), "second")
    first = log.next()
    assert log.next() is None, "one is at decode"
    assert log.spliced(2, 1, as_tokens([1, 9])) == Spliced(("second",), aborts=True)
    assert (first.handover, first.tokens.tolist()) == ("first", [1, 2])
    assert log.is_in_vain(first)
    log.ended(first)
    assert log.next() is None, "the second one was released"


def test_a_splice_that_prefill_has_seen_is_no_reason_any_more() -> None:
    log = KvPrefetchLog[str]()
    log.spliced(1, 0, as_tokens([1] * 100))
    log.seen(1)
    assert log.offered(Offered(revision=1, num_tokens=100), "fresh") is OfferVerdict.FETCH
