"""What handing over ahead of the seal would gain on an accelerator and a network, in virtual time.

An 8B model on an H200, one question at a time, in the published shapes, with the production rules for
what is stable and what is offered. Prefill computes at the profile's speed, the
network carries one read at a time, and each read costs a set time besides. What
else a machine does (other sessions, the engines' own steps) is not modelled: the
figure is what the network alone makes of the wait for the second token.
"""

from __future__ import annotations

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field

from cost_profiles.load import shipped_profile
from cost_profiles.model import CostModel
from experiments.handover_cluster import READ_OVERHEAD_S
from experiments.handover_plan import Question, questions
from prefill_worker.offers import OfferLimits, OfferTable
from router.stability import Stability
from stream2llm.api.handover import HANDOVER_MODES, HandoverMode
from stream2llm.serving.prefix import as_tokens, common_prefix_len
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.format import Shape

_PROFILE = "h200_llama-3.1-8b_tp1"
# Llama 3.1 8B: 32 layers, 8 KV heads of 128, keys and values, 2 bytes each.
BYTES_PER_TOKEN = 32 * 8 * 128 * 2 * 2
_BLOCK_SIZE = 16
_STEP_TOKENS = 2048
_GBIT = 1e9 / 8
_SESSION = "q"
_SHAPES: tuple[Shape, ...] = ("crawler", "anns")


@dataclass(frozen=True, slots=True)
class Network:
    """Between a prefill and a decode worker."""

    bytes_per_s: float

    def read_s(self, num_tokens: int) -> float:
        """Seconds of one read."""
        return READ_OVERHEAD_S + num_tokens * BYTES_PER_TOKEN / self.bytes_per_s


@dataclass(slots=True)
class HandoverRun:
    """One question, one way. Times are seconds from its beginning."""

    question: Question
    mode: HandoverMode
    network: Network
    costs: CostModel
    now_s: float = 0.0
    # The sequence as prefill knows it, and how much of it is computed.
    tokens: list[int] = field(default_factory=list)
    num_computed: int = 0
    # Of the sequence, at decode; and the fetch under way: (end, tokens, offer).
    num_at_decode: int = 0
    fetch: tuple[float, int, str] | None = None
    moved_tokens: int = 0

    def exposed_s(self) -> float:
        """From the first token to the moment when decode has everything."""
        table = OfferTable(OfferLimits(_BLOCK_SIZE), lease_s=10)
        stability = Stability(len(self.question.prefix))
        changes = [(at_s, tokens) for at_s, tokens in self.question.sequences()]
        for (at_s, tokens), following in zip(changes, [*changes[1:], None], strict=True):
            self._splice(table, stability, max(self.now_s, at_s), tokens)
            until_s = following[0] if following else self.question.seal_s
            self._compute(table, until_s, is_sealed=False)
        self.now_s = max(self.now_s, self.question.seal_s)
        self._splice(table, stability, self.now_s, self.question.prompt, is_sealed=True)
        self._compute(table, float("inf"), is_sealed=True)
        return self._finish(table) - self.now_s

    def _splice(
        self,
        table: OfferTable,
        stability: Stability,
        at_s: float,
        tokens: list[int],
        *,
        is_sealed: bool = False,
    ) -> None:
        self._pass(table, at_s)
        same = common_prefix_len(as_tokens(self.tokens), as_tokens(tokens))
        if is_sealed:
            stable = stability.sealed(len(tokens))
        elif self.question.shape == "anns":
            stable = stability.updated(same)
        else:
            stable = stability.appended(len(tokens))
        self.tokens, self.num_computed = tokens, min(self.num_computed, same)
        self.num_at_decode = min(self.num_at_decode, same - same % _BLOCK_SIZE)
        table.spliced(_SESSION, same, stable if self.mode == "streamed" else 0)
        if self.fetch is not None and self.fetch[1] > same:
            table.end(self.fetch[2])
            self.fetch = None

    def _compute(self, table: OfferTable, until_s: float, *, is_sealed: bool) -> None:
        """Steps until nothing is left or the next event is due; a step is not broken off."""
        target = len(self.tokens) - (not is_sealed)
        while self.num_computed < target and self.now_s < until_s:
            last = min(self.num_computed + _STEP_TOKENS, target)
            step_s = self.costs.recompute_s(self.num_computed, last)
            self.num_computed = last
            self._pass(table, self.now_s + step_s)
            if last < target or not is_sealed:  # then there is the first token
                self._offer(table, has_work=last < target)
        if not is_sealed:
            self._pass(table, max(self.now_s, until_s))

    def _pass(self, table: OfferTable, at_s: float) -> None:
        """Time goes on; a fetch may end, and another offer be due."""
        while self.fetch is not None and self.fetch[0] <= at_s:
            self.now_s, self.num_at_decode, offer_id = self.fetch
            self.fetch = None
            table.end(offer_id)
            self._offer(table, has_work=False)
        self.now_s = max(self.now_s, at_s)

    def _offer(self, table: OfferTable, *, has_work: bool) -> None:
        due = table.due(_SESSION, self.num_computed, has_work=has_work, is_short=False)
        if not due.num_tokens:
            return
        offer = table.make(_SESSION, tuple(range(due.num_tokens // _BLOCK_SIZE)), self.now_s)
        num_new = due.num_tokens - self.num_at_decode
        self.moved_tokens += num_new
        end_s = self.now_s + self.network.read_s(num_new)
        self.fetch = (end_s, due.num_tokens, offer.offer_id)

    def _finish(self, table: OfferTable) -> float:
        """When decode has the rest, too: a fetch under way ends first."""
        ready_s = self.now_s
        if self.fetch is not None:
            ready_s, self.num_at_decode, _ = self.fetch
        return ready_s + self.network.read_s(len(self.tokens) - self.num_at_decode)


def main(args: Namespace) -> Sequence[str]:
    """Prints the table."""
    costs = CostModel(shipped_profile(_PROFILE))
    print(f"{_PROFILE}: {BYTES_PER_TOKEN / 1e3:.0f} kB a token; medians of {args.count} questions")
    rows = [
        _cells(shape, num_tokens, gbit, costs, args)
        for shape in _SHAPES
        for num_tokens in args.tokens
        for gbit in args.gbit
    ]
    titles = ["shape", "tokens", "Gbit/s", "at_seal", "streamed", "gain"]
    print(markdown(Table(titles, rows)))
    return ()


def _cells(
    shape: Shape, num_tokens: int, gbit: float, costs: CostModel, args: Namespace
) -> list[str]:
    asked = questions(shape, args.count, num_tokens, args.seconds, seed=0)
    at_seal, streamed = (
        statistics.median(
            HandoverRun(each, mode, Network(gbit * _GBIT), costs).exposed_s() for each in asked
        )
        for mode in HANDOVER_MODES
    )
    times = [f"{1e3 * each:.1f} ms" for each in (at_seal, streamed)]
    return [shape, f"{num_tokens:,}", f"{gbit:g}", *times, f"{at_seal / streamed:.1f} x"]


def add_options(parser: ArgumentParser) -> None:
    """Which questions, over which networks."""
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 4000, 9000, 16_000])
    parser.add_argument("--gbit", type=float, nargs="+", default=[25.0, 100.0, 400.0])
    parser.add_argument("--count", type=int, default=40, help="questions of each kind")
    parser.add_argument("--seconds", type=float, default=6.0, help="that a context takes to come")
