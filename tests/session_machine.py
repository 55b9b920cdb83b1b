"""Random sessions against a plain dict: the same machine for every way to run a scheduler.

The machine knows documents, sequences and answers; a driver knows what runs
them: the planner over a dict of blocks, vLLM's scheduler with our subclass and
a fake executor, or a cluster. Documents are few and shared, so that sessions
hit each other's prefixes, come back to earlier lists (A, B, A), and replace a
document by one that begins alike (a last block that stays partly valid).

Invariants; docs/scheduling.md says where else each is proven:

1. The answer of a sealed session is the one-shot answer of its final sequence.
2. The holders of every block are counted right; at the end all blocks are free.
3. A session ends exactly once, as asked; none is lost, and all that are sealed
   end within a bounded number of steps once memory is there.
4. A step stays inside its tokens, its requests and the blocks that are free.
5. Computed tokens never exceed known ones, KV is that of the session's own
   tokens, and an open session never samples.
6. Sessions with nothing new to compute cost no step: without events the engine
   comes to rest. Nothing is remembered of ended sessions.

`SessionDriver.check` asserts those that show inside (2, 4, 5, 6), the machine
those that show outside (1, 3).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

Tokens = tuple[int, ...]

# Equal heads of several lengths around block borders; one token; a whole block and more.
_HEAD = (11, 12, 13, 14, 15, 16)
DOCUMENTS: tuple[Tokens, ...] = (
    (7,),
    (21, 22, 23),
    (31, 32, 33, 34),
    _HEAD[:5],
    (*_HEAD[:5], 41, 42, 43),
    (*_HEAD, 51, 52, 53, 54, 55, 56, 57),
    (*_HEAD, 51, 52, 53, 61, 62),
    tuple(range(100, 123)),
    tuple(range(130, 149)),
    (),
)
SUFFIXES: tuple[Tokens, ...] = ((), (2,), (3, 4, 5), tuple(range(200, 210)))


@dataclass(frozen=True)
class DriverLimits:
    """What the driver's engine can do."""

    max_tokens: int
    token_budget: int
    max_sessions: int = 8
    # Steps that KV needs to come back from the host; 0: there is no CPU KV offload pool.
    load_steps: int = 0


class SessionDriver(Protocol):
    """Runs sessions. Calls are made between steps, unless the name says otherwise."""

    @property
    def limits(self) -> DriverLimits: ...
    @property
    def policies(self) -> tuple[str, ...]: ...

    def open(self, name: str, prefix: Tokens, *, hand_over: bool) -> None: ...
    def append(self, name: str, documents: Sequence[Tokens]) -> None: ...
    def update(self, name: str, documents: Sequence[Tokens]) -> None: ...
    def seal(self, name: str, suffix: Tokens) -> None: ...
    def cancel(self, name: str) -> None: ...

    def has_work(self) -> bool:
        """A step is due: the engine would not sleep."""

    def step(self, cancel: str | None = None) -> None:
        """One step, if there is anything to do; `cancel` ends a session in the middle of it."""

    def take_blocks(self, num_blocks: int) -> None:
        """Another hand-over takes up to so many of the free blocks."""

    def return_blocks(self) -> None: ...
    def set_policy(self, policy: str) -> None: ...

    def swaps_fail(self, fail: bool) -> None:
        """Copies to and from the host fail from now on, or do no more."""

    def leased(self) -> frozenset[str]:
        """Answered sessions whose blocks wait for a reader."""

    def end_lease(self, name: str, *, expired: bool) -> None: ...

    def answers(self) -> Mapping[str, Sequence[int]]:
        """All first tokens that were sampled for each session."""

    def one_shot_answer(self, tokens: Tokens) -> int: ...
    def check(self) -> None: ...

    def check_empty(self) -> None:
        """Nothing is held and nothing is remembered."""

    def close(self) -> None: ...


@dataclass
class Expected:
    """The model of a session: what it should be."""

    prefix: Tokens
    documents: list[Tokens] = field(default_factory=list)
    suffix: Tokens = ()
    sealed: bool = False

    @property
    def tokens(self) -> Tokens:
        return sum(self.documents, self.prefix) + self.suffix


def _documents(max_size: int, min_size: int = 0) -> st.SearchStrategy[list[Tokens]]:
    return st.lists(st.sampled_from(DOCUMENTS), min_size=min_size, max_size=max_size)


# Which of the sessions that a rule may be about, whatever their number.
_WHICH = st.integers(0, 7)


class SessionMachine(RuleBasedStateMachine):
    """Subclass it with `make_driver`, and run its `TestCase`."""

    def make_driver(self) -> SessionDriver:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.driver = self.make_driver()
        self.limits = self.driver.limits
        self.sessions: dict[str, Expected] = {}
        self.cancelled: set[str] = set()
        # Document lists of all sessions so far, to come back to.
        self.history: list[list[Tokens]] = []

    # -- who ---------------------------------------------------------------

    @property
    def open_names(self) -> list[str]:
        return [name for name, session in self.sessions.items() if not session.sealed]

    @property
    def live_names(self) -> list[str]:
        answered = self.driver.answers()
        return [name for name in self.sessions if name not in answered]

    def fits(self, tokens: Tokens) -> bool:
        """Whether the service would let it through."""
        return len(tokens) <= self.limits.max_tokens

    # -- events --------------------------------------------------------------

    @precondition(lambda self: len(self.live_names) < self.limits.max_sessions)
    @rule(documents=_documents(3), hand_over=st.booleans(), at_once=st.booleans())
    def open(self, documents: list[Tokens], hand_over: bool, at_once: bool) -> None:
        self._open(sum(documents, ()), hand_over, at_once)

    @precondition(lambda self: self.sessions and len(self.live_names) < self.limits.max_sessions)
    @rule(which=_WHICH, documents=_documents(1), hand_over=st.booleans(), at_once=st.booleans())
    def open_alike(
        self, which: int, documents: list[Tokens], hand_over: bool, at_once: bool
    ) -> None:
        """Begins with all tokens of another one, which may have ended and be under a lease."""
        like = list(self.sessions.values())[which % len(self.sessions)]
        self._open(sum(documents, like.tokens), hand_over, at_once)

    def _open(self, prefix: Tokens, hand_over: bool, at_once: bool) -> None:
        if self.fits(prefix):
            name = f"s{len(self.sessions) + len(self.cancelled)}"
            self.driver.open(name, prefix, hand_over=hand_over)
            self.sessions[name] = Expected(prefix)
            if at_once and prefix:
                self.sessions[name].sealed = True
                self.driver.seal(name, ())

    @precondition(lambda self: self.open_names)
    @rule(which=_WHICH, documents=_documents(4, min_size=1))
    def append(self, which: int, documents: list[Tokens]) -> None:
        name = self.open_names[which % len(self.open_names)]
        session = self.sessions[name]
        if self.fits(sum(documents, session.tokens)):
            session.documents = session.documents + documents
            self.history.append(session.documents)
            self.driver.append(name, documents)

    @precondition(lambda self: self.open_names)
    @rule(which=_WHICH, documents=_documents(6))
    def update(self, which: int, documents: list[Tokens]) -> None:
        name = self.open_names[which % len(self.open_names)]
        session = self.sessions[name]
        if self.fits(sum(documents, session.prefix)):
            session.documents = documents
            self.history.append(documents)
            self.driver.update(name, documents)

    @precondition(lambda self: self.open_names)
    @rule(which=_WHICH, num_kept=st.integers(0, 6), documents=_documents(3))
    def replace_tail(self, which: int, num_kept: int, documents: list[Tokens]) -> None:
        name = self.open_names[which % len(self.open_names)]
        self.update(which, self.sessions[name].documents[:num_kept] + documents)

    @precondition(lambda self: self.open_names and self.history)
    @rule(which=_WHICH, past=st.integers(0, 100))
    def come_back(self, which: int, past: int) -> None:
        self.update(which, self.history[-1 - past % len(self.history)])

    @precondition(lambda self: self.open_names)
    @rule(which=_WHICH, suffix=st.sampled_from(SUFFIXES))
    def seal(self, which: int, suffix: Tokens) -> None:
        name = self.open_names[which % len(self.open_names)]
        session = self.sessions[name]
        final = session.tokens + suffix
        if final and self.fits(final):
            session.suffix, session.sealed = suffix, True
            self.driver.seal(name, suffix)

    @precondition(lambda self: self.sessions)
    @rule(which=_WHICH)
    def cancel(self, which: int) -> None:
        name = list(self.sessions)[which % len(self.sessions)]
        self.driver.cancel(name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        del self.sessions[name]
        self.cancelled.add(name)

    # -- steps ----------------------------------------------------------------

    @rule(num_steps=st.sampled_from([1, 1, 1, 2, 5]))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.driver.step()

    @rule()
    def until_idle(self) -> None:
        """With memory available, work ends: no session is recomputed for ever."""
        self.driver.return_blocks()
        self._step_until(lambda: not (self.driver.has_work() or self.driver.leased()))
        sealed = [name for name in self.live_names if self.sessions[name].sealed]
        assert not sealed, f"{sealed} wait, and nothing will be done"

    def _step_until(self, is_reached: Callable[[], bool]) -> None:
        bound = self._steps_to_end()
        for _ in range(bound):
            if is_reached():
                return
            self._end_leases()
            self.driver.step()
            self.answers_are_exact_and_come_once()
            self.driver.check()
        raise AssertionError(f"still busy after {bound} steps with {self.live_names}")

    def _steps_to_end(self) -> int:
        """The first in rank gets on in every step; each may have to start again once.

        Between two of its steps KV may have to come back from the host.
        """
        live = [len(self.sessions[name].tokens) for name in self.live_names]
        num_steps = sum(2 * (2 + length // self.limits.token_budget) for length in live)
        return 6 + num_steps * (1 + self.limits.load_steps)

    def _end_leases(self) -> None:
        for name in self.driver.leased():
            self.driver.end_lease(name, expired=False)

    @precondition(lambda self: self.live_names)
    @rule(which=_WHICH)
    def cancel_in_the_middle_of_a_step(self, which: int) -> None:
        name = self.live_names[which % len(self.live_names)]
        if self.driver.has_work():
            self.driver.step(cancel=name)
            self._forget(name)

    # -- memory and policy ------------------------------------------------------

    @rule(num_blocks=st.integers(1, 40))
    def shortage(self, num_blocks: int) -> None:
        self.driver.take_blocks(num_blocks)

    @rule()
    def end_of_shortage(self) -> None:
        self.driver.return_blocks()

    @precondition(lambda self: self.driver.leased())
    @rule(which=_WHICH, expired=st.booleans())
    def end_lease(self, which: int, expired: bool) -> None:
        leased = sorted(self.driver.leased())
        self.driver.end_lease(leased[which % len(leased)], expired=expired)

    @precondition(lambda self: len(self.driver.policies) > 1)
    @rule(which=_WHICH)
    def set_policy(self, which: int) -> None:
        self.driver.set_policy(self.driver.policies[which % len(self.driver.policies)])

    @rule(fail=st.booleans())
    def swaps_fail(self, fail: bool) -> None:
        self.driver.swaps_fail(fail)

    # -- invariants ----------------------------------------------------------------

    @invariant()
    def answers_are_exact_and_come_once(self) -> None:
        for name, tokens in self.driver.answers().items():
            assert len(tokens) == 1, f"{name} was answered {len(tokens)} times"
            if name in self.cancelled:
                continue
            session = self.sessions[name]
            assert session.sealed, f"{name} is open and was sampled"
            expected = self.driver.one_shot_answer(session.tokens)
            assert tokens[0] == expected, f"{name}: {tokens[0]} instead of {expected}"

    @invariant()
    def driver_is_sound(self) -> None:
        self.driver.check()

    def teardown(self) -> None:
        # After a failure the first one is what counts.
        if sys.exc_info()[0] is None:
            self._settle()
        self.driver.close()

    def _settle(self) -> None:
        """Memory comes back, all are sealed: all end, and nothing is left."""
        self.driver.return_blocks()
        for name in self.open_names:
            self._seal_or_cancel(name)
        self.until_idle()
        assert not self.live_names, f"{self.live_names} were not answered"
        self.driver.check_empty()

    def _seal_or_cancel(self, name: str) -> None:
        session = self.sessions[name]
        if not session.tokens:
            self.driver.cancel(name)
            self._forget(name)
            return
        session.sealed = True
        self.driver.seal(name, ())
