"""Random offers, fetches, updates, cancels, deaths and lease ends on both real scheduler classes.

After every step, on both workers: each block has as many references as holders,
offers and leases hold the KV they promise (`SchedulerDriver.check`), and what
decode's prefix cache offers is the KV of the prefix it stands for. At the end
every session is answered exactly and nothing is held anywhere.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

pytest.importorskip("vllm")

from router.kv_prefetch_log import Fetch
from tests.examples import examples
from tests.scheduling.engine_settings import EngineSettings, worker_options
from tests.scheduling.executor import KV
from tests.scheduling.handover_pair import Pair, overwrite
from tests.session_machine import DOCUMENTS, SUFFIXES, Tokens

_WHICH = st.integers(0, 7)
_DOCUMENTS = st.lists(st.sampled_from(DOCUMENTS), max_size=4)
_MAX_TOKENS = 80
_MAX_SESSIONS = 5


class HandoverMachine(RuleBasedStateMachine):
    """Sessions come and go; messages between the workers may be late."""

    pair_settings: tuple[EngineSettings, EngineSettings, int]
    pair_type: type[Pair] = Pair

    def __init__(self) -> None:
        super().__init__()
        prefill, decode, read_steps = self.pair_settings
        self.pair = self.pair_type(prefill, decode, read_steps=read_steps)
        self.num_opened = 0
        self.sealed: set[str] = set()

    @property
    def open_names(self) -> list[str]:
        return [name for name in self.pair.sessions if name not in self.sealed]

    @precondition(lambda self: len(self.pair.sessions) < _MAX_SESSIONS)
    @rule(documents=_DOCUMENTS)
    def open(self, documents: list[Tokens]) -> None:
        self.num_opened += 1
        self.pair.open(f"s{self.num_opened}", sum(documents, ()))

    @precondition(lambda self: self.open_names)
    @rule(which=_WHICH, documents=_DOCUMENTS)
    def append(self, which: int, documents: list[Tokens]) -> None:
        name = self.open_names[which % len(self.open_names)]
        self._become(name, self.pair.prefill.sessions[name].tokens + list(sum(documents, ())))

    @precondition(lambda self: self.open_names)
    @rule(which=_WHICH, num_kept=st.integers(0, 60), documents=_DOCUMENTS)
    def update(self, which: int, num_kept: int, documents: list[Tokens]) -> None:
        name = self.open_names[which % len(self.open_names)]
        kept = self.pair.prefill.sessions[name].tokens[:num_kept]
        self._become(name, kept + list(sum(documents, ())))

    def _become(self, name: str, tokens: list[int]) -> None:
        if len(tokens) <= _MAX_TOKENS and tokens != self.pair.prefill.sessions[name].tokens:
            self.pair.become(name, tokens)

    @precondition(lambda self: self.open_names)
    @rule(which=_WHICH, suffix=st.sampled_from(SUFFIXES))
    def seal(self, which: int, suffix: Tokens) -> None:
        name = self.open_names[which % len(self.open_names)]
        if self.pair.prefill.sessions[name].tokens or suffix:
            self.sealed.add(name)
            self.pair.seal(name, suffix)

    @precondition(lambda self: self.pair.sessions)
    @rule(which=_WHICH)
    def cancel(self, which: int) -> None:
        name = list(self.pair.sessions)[which % len(self.pair.sessions)]
        self.pair.cancel(name)

    @precondition(lambda self: self.pair.sessions)
    @rule(which=_WHICH)
    def deliver(self, which: int) -> None:
        self.pair.deliver(list(self.pair.sessions)[which % len(self.pair.sessions)])

    @precondition(lambda self: self.pair.sessions)
    @rule(which=_WHICH)
    def deliver_final(self, which: int) -> None:
        self.pair.deliver_final(list(self.pair.sessions)[which % len(self.pair.sessions)])

    @rule(num_steps=st.sampled_from([1, 1, 2, 5]))
    def step_prefill(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.pair.step_prefill()

    @rule(num_steps=st.sampled_from([1, 1, 2, 5]))
    def step_decode(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.pair.step_decode()

    @rule(seconds=st.sampled_from([0.01, 0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.pair.clock.advance(seconds)

    @precondition(lambda self: self.pair.prefill.offered())
    @rule(which=_WHICH)
    def a_lease_ends(self, which: int) -> None:
        offers = self.pair.prefill.offered()
        self.pair.prefill.end_lease(offers[which % len(offers)], expired=True)

    @rule()
    def decode_dies(self) -> None:
        """Its answers are lost; the sessions that it had fetch from the start again."""
        lost = self.pair.at_decode()
        self.pair.kill_decode()
        for name in lost:
            self.pair.cancel(name)

    @rule(fail=st.booleans())
    def reads_fail(self, fail: bool) -> None:
        self.pair.reader.fails = fail

    @rule(which=st.one_of(st.none(), _WHICH))
    def reads_bring_other_kv(self, which: int | None) -> None:
        """In one of their blocks, until further notice."""

        def corrupt(kv: KV, blocks: list[int]) -> None:
            overwrite(kv, blocks[(which or 0) % len(blocks)])

        self.pair.corrupt_reads(corrupt if which is not None else None)

    @rule(num_blocks=st.integers(1, 30))
    def shortage_at_prefill(self, num_blocks: int) -> None:
        self.pair.prefill.take_blocks(num_blocks)

    @rule()
    def end_of_shortage(self) -> None:
        self.pair.prefill.return_blocks()

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        self.pair.check()

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self._settle()
        self.pair.close()

    def _settle(self) -> None:
        self.pair.prefill.return_blocks()
        self.pair.reader.fails = False
        self.reads_bring_other_kv(which=None)
        for name in self.open_names:
            if self.pair.prefill.sessions[name].tokens:
                self.pair.seal(name)
            else:
                self.pair.cancel(name)
        self.pair.settle(expire=True)
        for name in self.pair.sessions:
            assert self.pair.is_exact(name) or name in self.pair.failed, f"{name} is wrong"
        self.pair.check_empty()


def _machine_type(
    prefix_caching: bool,
    decode_blocks: int,
    read_steps: int,
    *,
    kv_digest: bool = True,
    offload_pool_blocks: int = 0,
) -> type[HandoverMachine]:
    options = worker_options(
        min_offer_tokens=8,
        starvation_guard_steps=6,
        kv_digest=kv_digest,
        preemption="swap" if offload_pool_blocks else "recompute",
    )

    class Machine(HandoverMachine):
        pair_settings = (
            EngineSettings(
                prefix_caching=prefix_caching,
                options=options,
                offload_pool_blocks=offload_pool_blocks,
            ),
            EngineSettings(num_blocks=decode_blocks, options=options),
            read_steps,
        )

    return Machine


def EACH_PAIR(test: Any) -> Any:  # noqa: N802 - a mark like the others
    """With every combination of what the two workers may be like."""
    test = pytest.mark.parametrize("read_steps", [0, 3])(test)
    test = pytest.mark.parametrize("decode_blocks", [25, 60], ids=["tight", "roomy"])(test)
    ids = ["cache", "no-cache"]
    return pytest.mark.parametrize("prefix_caching", [True, False], ids=ids)(test)


@EACH_PAIR
def test_answers_are_exact_and_blocks_come_back(
    prefix_caching: bool, decode_blocks: int, read_steps: int
) -> None:
    machine = _machine_type(prefix_caching, decode_blocks, read_steps)
    run_state_machine_as_test(machine, settings=examples(10))


def test_kv_that_was_on_the_host_has_its_digest() -> None:
    """Restored blocks are sampled again; no read of them is taken for another one's."""
    machine = _machine_type(True, 60, 0, offload_pool_blocks=20)
    run_state_machine_as_test(machine, settings=examples(10))


@EACH_PAIR
def test_an_offer_is_under_way_when_decode_dies_and_the_context_changes(
    prefix_caching: bool, decode_blocks: int, read_steps: int
) -> None:
    """Its tokens are gone from the sequence when it arrives at the next decode worker."""
    machine = _machine_type(prefix_caching, decode_blocks, read_steps)()
    machine.open(documents=[(7,)] * 4)
    machine.update(which=0, num_kept=4, documents=[(7,)])
    machine.step_prefill(num_steps=1)
    assert machine.pair.sessions["s1"].under_way
    machine.decode_dies()
    machine.update(which=0, num_kept=0, documents=[(7,)] * 3)
    machine.blocks_are_accounted_for()
    machine.teardown()


class _CutsLate(Pair):
    """A fault: a fetch carries the tokens of the sequence as it is when the fetch is sent."""

    def tokens_to_fetch(self, name: str, fetch: Fetch[dict[str, Any]]) -> list[int]:
        return self.prefill.sessions[name].tokens[: fetch.what.num_tokens]


def _step_and_check(machine: HandoverMachine, num_steps: int) -> None:
    for _ in range(num_steps):
        machine.step_decode(num_steps=1)
        machine.blocks_are_accounted_for()


@EACH_PAIR
def test_tokens_that_are_cut_too_late_are_found(
    prefix_caching: bool, decode_blocks: int, read_steps: int
) -> None:
    """The check of decode's cache can fail; with digests such KV never gets there."""
    machine = _machine_type(prefix_caching, decode_blocks, read_steps, kv_digest=False)
    machine.pair_type = _CutsLate
    state = machine()
    state.open(documents=[(7,)] * 4)
    state.append(which=0, documents=[(7,)])
    state.step_prefill(num_steps=1)
    state.update(which=0, num_kept=0, documents=[(31, 32, 33, 34), (7,)])
    state.deliver(which=0)
    with pytest.raises(AssertionError, match="wrong KV in decode's cache"):
        _step_and_check(state, read_steps + 2)
    state.pair.close()
