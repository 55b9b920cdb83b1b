"""Prefill, decode and mixed workers in virtual time, and what happens between them.

All events of one moment are delivered before a worker plans a step, so that a chunk
and the seal that follows it at once are one change, as they mostly are for a real
engine, which is in the middle of a step.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count

from prefill_worker.session_state import SessionState
from stream2llm.serving.settings.worker_options import HandoverOptions
from stream2llm.simulator.decode import Answer, DecodeWorker
from stream2llm.simulator.placing import Placing
from stream2llm.simulator.prefetch import Fetch, KvPrefetch
from stream2llm.simulator.prefill import PrefillWorker, StepResult
from stream2llm.simulator.work import Change, Task, in_order
from stream2llm.workload.records import RunRecord, Sample, SessionRecord

_Act = Callable[[], None]


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Beside its workers."""

    # From a client's submission to the prefill engine: network, tokenizing, queues.
    front_s: float = 0.0
    # Tokens of each answer whose task has no length; the first comes from where it is prefilled.
    num_output_tokens: int = 1
    # None: no samples.
    sample_every_s: float | None = None
    # Only the mode and `min_offer_tokens` count.
    handover: HandoverOptions = field(default_factory=HandoverOptions)


@dataclass(slots=True)
class _Live:
    """A session from its opening to its last token."""

    task: Task
    # Its number among those that prefill.
    prefill: int
    decode: int | None = None
    # Prefill has heard of it.
    is_known: bool = False
    token_times_s: list[float] = field(default_factory=list)
    # Its tokens' fate where it is prefilled, from its first token on.
    state: SessionState | None = None


class Cluster:
    """Plays tasks once; see the module's text."""

    def __init__(
        self,
        settings: ClusterSettings,
        prefill: Sequence[PrefillWorker],
        decode: Sequence[DecodeWorker] = (),
        mixed: Sequence[PrefillWorker] = (),
    ) -> None:
        """`mixed` workers go on with the answers of what they prefill."""
        self._settings = settings
        # All that prefill: the mixed ones behind the others.
        self._prefill = (*prefill, *mixed)
        self._placing = Placing(len(prefill), len(mixed), decode)
        self._decode = decode
        self._now_s = 0.0
        self._numbers = count()
        # What tasks submit, in order, and all that follows from it, as a heap.
        self._arrivals: deque[tuple[float, Task, Change]] = deque()
        self._heap: list[tuple[float, int, _Act]] = []
        # What came during a step of that worker; applied before its next.
        self._inboxes: list[list[tuple[str, Change]]] = [[] for _ in self._prefill]
        self._prefill_busy = [False] * len(self._prefill)
        self._decode_busy = [False] * len(decode)
        self._live: dict[str, _Live] = {}
        self._records: list[SessionRecord] = []
        self._samples: list[Sample] = []
        self._touched: set[int] = set()
        self._prefetch: KvPrefetch | None = None

    def play(self, tasks: Iterable[Task], system: str, trace: str) -> RunRecord:
        """Runs until every session is answered; ValueError: longer answers need a worker for them."""
        asked = list(tasks)
        self._prepare(max(map(self._num_output_tokens, asked), default=1))
        front_s = self._settings.front_s
        self._arrivals.extend(
            (change.at_s + front_s, each, change) for change, each in in_order(asked)
        )
        if self._settings.sample_every_s is not None:
            self._at(0.0, self._sample)
        while self._arrivals or self._heap:
            self._play_moment()
        assert not self._live, f"sessions wait, and nothing will ever come: {list(self._live)[:3]}"
        records = sorted(self._records, key=lambda record: (record.opened_s, record.session_id))
        return RunRecord(
            system,
            trace,
            max((record.ended_s for record in records), default=0.0),
            tuple(records),
            tuple(self._samples),
            self._counters(),
        )

    def _play_moment(self) -> None:
        """All that happens at the next moment: first what arrives, then what was pushed, in order."""
        arrivals, heap = self._arrivals, self._heap
        is_arrival = bool(arrivals) and (not heap or arrivals[0][0] <= heap[0][0])
        now_s = self._now_s = arrivals[0][0] if is_arrival else heap[0][0]
        while arrivals and arrivals[0][0] == now_s:
            _, task, change = arrivals.popleft()
            self._arrive(task, change)
        while heap and heap[0][0] == now_s:
            heapq.heappop(heap)[2]()
        self._begin_steps()

    def _prepare(self, longest_answer: int) -> None:
        if longest_answer > 1 and not self._placing.is_mixed(0) and not self._decode:
            raise ValueError("answers of more than one token need a decode worker")
        if longest_answer > 1 and self._decode and self._settings.handover.mode == "streamed":
            self._prefetch = KvPrefetch(
                self._prefill, self._decode, self._settings.handover.min_offer_tokens
            )

    def _num_output_tokens(self, task: Task) -> int:
        return task.num_output_tokens or self._settings.num_output_tokens

    def _at(self, at_s: float, act: _Act) -> None:
        heapq.heappush(self._heap, (at_s, next(self._numbers), act))

    # -- context -----------------------------------------------------------------------

    def _arrive(self, task: Task, change: Change) -> None:
        live = self._live.get(task.name)
        if live is None:
            live = self._live[task.name] = _Live(task, self._placing.place(change.num_known))
            if self._prefetch is not None and not self._placing.is_mixed(live.prefill):
                live.decode = self._placing.pick_decode()
                self._decode[live.decode].follow(task.name)
        if self._prefill_busy[live.prefill]:
            self._inboxes[live.prefill].append((task.name, change))
        else:
            self._change(live, change)
            self._touched.add(live.prefill)

    def _change(self, live: _Live, change: Change) -> None:
        """Prefill hears of it."""
        name, is_opening = live.task.name, not live.is_known
        live.is_known = True
        ttft_slo_ms = round(1000 * (live.task.ttft_slo_s or 0))
        worker = self._prefill[live.prefill]
        worker.change(
            name,
            change,
            tenant=live.task.tenant,
            ttft_slo_ms=ttft_slo_ms,
            num_to_sample=self._num_output_tokens(live.task)
            if self._placing.is_mixed(live.prefill)
            else 1,
        )
        if self._prefetch is None or live.decode is None:
            return
        if is_opening:
            self._prefetch.opened(name, live.prefill, live.decode, change)
        else:
            self._prefetch.changed(name, change)

    # -- prefill -----------------------------------------------------------------------

    def _begin_steps(self) -> None:
        touched, self._touched = sorted(self._touched), set()
        for number in touched:
            if not self._prefill_busy[number]:
                self._begin_fetches(number)
                self._begin_prefill_step(number)

    def _begin_prefill_step(self, number: int) -> None:
        result = self._prefill[number].begin_step(self._now_s)
        if result is not None:
            self._prefill_busy[number] = True
            self._at(self._now_s + result.seconds, lambda: self._end_prefill_step(number, result))

    def _end_prefill_step(self, number: int, result: StepResult) -> None:
        worker = self._prefill[number]
        self._prefill_busy[number] = False
        self._touched.add(number)
        for name in result.sampled:
            live = self._live[name]
            if live.state is None and self._placing.is_mixed(number):
                self._placing.begins_answer(number)
            live.state = worker.session_counters(name)
            live.token_times_s.append(self._now_s)
        done = worker.end_step(result)
        if self._prefetch is not None:
            for name in result.computed:
                self._prefetch.touch(name)
        for name in done:
            self._placing.leaves(number)
            self._hand_over(name)
        inbox, self._inboxes[number] = self._inboxes[number], []
        for name, change in inbox:
            self._change(self._live[name], change)

    # -- hand-over and decode ----------------------------------------------------------

    def _begin_fetches(self, number: int) -> None:
        """What this prefill worker has to offer goes on its way to decode."""
        if self._prefetch is not None:
            for at_s, fetch in self._prefetch.begin(number, self._now_s):
                self._at(at_s, self._prefetch_end(self._prefetch, fetch))

    def _prefetch_end(self, prefetch: KvPrefetch, fetch: Fetch) -> _Act:
        def act() -> None:
            prefetch.ended(fetch)
            self._touched.add(fetch.prefill)

        return act

    def _hand_over(self, name: str) -> None:
        """After the last token from there; the worker keeps the KV until it is fetched."""
        live = self._live[name]
        if self._prefetch is not None and live.decode is not None:
            live.decode = self._prefetch.answered(name)
        num_left = self._num_output_tokens(live.task) - len(live.token_times_s)
        if not num_left:
            self._prefill[live.prefill].release(name)
            self._end(name)
            return
        if live.decode is None:
            live.decode = self._placing.pick_decode()
        answer = Answer(name, live.task.num_tokens + 1, num_left, live.task.tenant)
        self._decode[live.decode].submit(answer)
        self._take_up(live.decode)

    def _take_up(self, number: int) -> None:
        for at_s, answer in self._decode[number].take_up(self._now_s):
            self._at(at_s, self._fetch_end(number, answer))

    def _fetch_end(self, number: int, answer: Answer) -> _Act:
        def act() -> None:
            live = self._live[answer.name]
            self._prefill[live.prefill].release(answer.name)
            self._touched.add(live.prefill)
            self._decode[number].fetched(answer)
            self._begin_decode_step(number)

        return act

    def _begin_decode_step(self, number: int) -> None:
        worker = self._decode[number]
        seconds = None if self._decode_busy[number] else worker.begin_step()
        if seconds is not None:
            self._decode_busy[number] = True
            names = worker.names()
            self._at(self._now_s + seconds, lambda: self._end_decode_step(number, names))

    def _end_decode_step(self, number: int, names: tuple[str, ...]) -> None:
        self._decode_busy[number] = False
        for name in names:
            self._live[name].token_times_s.append(self._now_s)
        for name in self._decode[number].end_step(names):
            self._end(name)
        self._take_up(number)
        self._begin_decode_step(number)

    # -- records -----------------------------------------------------------------------

    def _end(self, name: str) -> None:
        live = self._live.pop(name)
        task, state = live.task, live.state
        assert state is not None
        self._records.append(
            SessionRecord(
                name,
                due_s=task.opened_s,
                opened_s=task.opened_s,
                seal_due_s=task.sealed_s,
                sealed_s=task.sealed_s,
                token_times_s=tuple(live.token_times_s),
                ended_s=self._now_s,
                num_prompt_tokens=task.num_tokens,
                computed_tokens=state.computed,
                invalidated_tokens=state.invalidated,
                recomputed_tokens=state.recomputed,
                ttft_slo_s=task.ttft_slo_s,
            )
        )

    def _sample(self) -> None:
        workers = self._prefill
        self._samples.append(
            Sample(
                self._now_s,
                sum(worker.kv_usage for worker in workers) / len(workers),
                sum(worker.num_sessions for worker in workers),
                sum(worker.num_with_work for worker in workers),
            )
        )
        if self._arrivals or self._heap:
            assert self._settings.sample_every_s is not None
            self._at(self._now_s + self._settings.sample_every_s, self._sample)

    def _counters(self) -> dict[str, float]:
        """Sums over the workers."""
        found = _sums([asdict(worker.counters) for worker in self._prefill])
        if self._decode:
            crossed = _sums([asdict(worker.counters) for worker in self._decode])
            found |= {f"handover_{name}": value for name, value in crossed.items()}
        if self._prefetch is not None:
            found["handover_refused_fetches"] = self._prefetch.num_refused
        return found


def _sums(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(counters[name] for counters in each) for name in each[0]}
