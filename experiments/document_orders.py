"""What updates invalidate when documents stand as given, and in the stable order.

First the ANNS trace as it is generated (or the files, such as recordings of real searches), then
the same sessions with updates drawn from other models: how documents come and go while a search
gets better is judgement (nothing is published about it), and decides the figures. The trace
generator has one of these models; the others show what the choice decides. A second table of each
says how the lists change. Ratios are to what is invalidated as given: of the stable order, of two
others (`stream2llm/workload/document_orders.py`), and of the documents that updates leave out,
which no order can avoid.
"""

from __future__ import annotations

import random
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.list_changes import ListChanges, changes_of
from stream2llm.api.options import DocumentOrdering
from stream2llm.workload.document_orders import ORDERS, Lists, invalidated, left, with_foresight
from stream2llm.workload.table import Table, markdown
from stream2llm.workload.traces.format import Scale, Session
from stream2llm.workload.traces.generate import generate
from stream2llm.workload.traces.layout import INSERTION_POWER, TOP_K
from stream2llm.workload.traces.read import read_sessions


@dataclass(frozen=True, slots=True)
class UpdateModel:
    """The change that one update makes to a ranking of TOP_K documents."""

    # A new one comes in at TOP_K x u ** this, u uniform in [0, 1): 1 is anywhere.
    insertion_power: float = INSERTION_POWER
    num_new: int = 1
    # All documents are ranked anew, at random.
    reranks: bool = False
    # Nothing falls out, and the first list has one document.
    grows: bool = False

    def redraw(self, session: Lists, rng: random.Random) -> Lists:
        """As many lists of other documents, with sizes drawn from the session's own."""
        ranking = [f"d{number}" for number in range(1 if self.grows else TOP_K)]
        lists, count = [tuple(ranking)], len(ranking)
        for _ in session.lists[1:]:
            if not self.grows:
                del ranking[TOP_K - self.num_new :]
            for _ in range(self.num_new):
                place = int((len(ranking) + 1) * rng.random() ** self.insertion_power)
                ranking.insert(place, f"d{count}")
                count += 1
            if self.reranks:
                rng.shuffle(ranking)
            lists.append(tuple(ranking))
        sizes = sorted(session.sizes.values())
        return Lists(tuple(lists), {f"d{number}": rng.choice(sizes) for number in range(count)})


MODELS: Mapping[str, UpdateModel] = {
    "as the generator": UpdateModel(),
    "at the last place, nearly always": UpdateModel(0.05),
    "rather behind": UpdateModel(0.5),
    "anywhere": UpdateModel(1.0),
    "three at once, near the end": UpdateModel(num_new=3),
    "three at once, anywhere": UpdateModel(1.0, num_new=3),
    "near the end, all ranked anew": UpdateModel(reranks=True),
    "anywhere, none leaves": UpdateModel(1.0, grows=True),
}


WANTED_RATIO = 0.5
MANY_TOKENS = 10_000
FORESIGHT_EVERY = 10
_GIVEN, _STABLE = DocumentOrdering.AS_GIVEN, DocumentOrdering.STABLE


@dataclass(frozen=True, slots=True)
class Outcome:
    """Tokens that the updates of each session invalidate, by order."""

    tokens: Mapping[str, Sequence[int]]
    # Ratio of the best order that knows all updates; None: not known.
    foresight: float | None
    changes: ListChanges

    def ratio(self, order: str) -> float:
        """Tokens that this order invalidates, to those invalidated as given."""
        return sum(self.tokens[order]) / max(sum(self.tokens[_GIVEN]), 1)

    def share(self, holds: Callable[[int, int], bool]) -> float:
        """Share of the sessions that invalidate tokens as given for which `holds(as given, stable)`."""
        pairs = zip(self.tokens[_GIVEN], self.tokens[_STABLE], strict=True)
        found = [holds(given, stable) for given, stable in pairs if given]
        return sum(found) / max(len(found), 1)

    def over(self, order: str) -> float:
        """Share of all sessions that invalidate many tokens."""
        tokens = self.tokens[order]
        return sum(each > MANY_TOKENS for each in tokens) / max(len(tokens), 1)


def outcome_of(sessions: Sequence[Lists], *, ranks_stay: bool = True) -> Outcome:
    """All orders on the same sessions. `ranks_stay`: foresight can be computed."""
    tokens = {
        name: [invalidated(each, order) for each in sessions] for name, order in ORDERS.items()
    }
    tokens["left"] = [left(each) for each in sessions]
    foresight = _foresight(sessions, tokens[_GIVEN]) if ranks_stay else None
    return Outcome(tokens, foresight, changes_of(sessions))


def _foresight(sessions: Sequence[Lists], given: Sequence[int]) -> float:
    # A tenth of the sessions: it tries many orders of each.
    known = sum(with_foresight(each) for each in sessions[::FORESIGHT_EVERY])
    return known / max(sum(given[::FORESIGHT_EVERY]), 1)


def lists_of(session: Session, sizes: Mapping[str, int]) -> Lists:
    """What updates and appends of a trace's session amount to."""
    return Lists(tuple(session.lists()), sizes)


def generated(num_queries: int, seed: int) -> list[Lists]:
    """The ANNS workload at the published scale."""
    sessions = generate("anns", [0.0] * num_queries, seed, Scale())
    return [lists_of(each, {d.id: d.num_tokens for d in each.documents}) for each in sessions]


def recorded(path: Path) -> list[Lists]:
    """The sessions of a file."""
    return [
        lists_of(session, {name: each.num_tokens for name, each in table.items()})
        for session, table in read_sessions(path)
    ]


_COLUMNS: Mapping[str, Callable[[Outcome], str]] = {
    "as given, tokens": lambda outcome: f"{sum(outcome.tokens[_GIVEN]):,}",
    "stable, tokens": lambda outcome: f"{sum(outcome.tokens[_STABLE]):,}",
    "ratio": lambda outcome: f"{outcome.ratio(_STABLE):.2f}",
    "survivors first": lambda outcome: f"{outcome.ratio('survivors first'):.2f}",
    "with foresight": lambda outcome: _or_dash(outcome.foresight),
    "left out": lambda outcome: f"{outcome.ratio('left'):.2f}",
    "sessions at most half": lambda outcome: (
        f"{outcome.share(lambda given, stable: stable <= WANTED_RATIO * given):.0%}"
    ),
    "fewer": lambda outcome: f"{outcome.share(lambda given, stable: stable < given):.0%}",
    "more": lambda outcome: f"{outcome.share(lambda given, stable: stable > given):.0%}",
    "over 10,000": lambda outcome: f"{outcome.over(_GIVEN):.0%} to {outcome.over(_STABLE):.0%}",
}


_CHANGE_COLUMNS: Mapping[str, Callable[[ListChanges], str]] = {
    "changes a session": lambda changes: f"{changes.per_session:.1f}",
    "new documents a change": lambda changes: f"{changes.new_documents:.2f}",
    "keeps nothing": lambda changes: f"{changes.share_that_keeps(0, 1e-9):.0%}",
    "less than half": lambda changes: f"{changes.share_that_keeps(1e-9, 0.5):.0%}",
    "less than 0.8": lambda changes: f"{changes.share_that_keeps(0.5, 0.8):.0%}",
    "more": lambda changes: f"{changes.share_that_keeps(0.8, 2):.0%}",
}


def change_table(what: str, outcomes: Mapping[str, Outcome]) -> str:
    """Markdown: how lists change, and how much of the list before a change keeps."""
    rows = [
        [name, *(show(outcome.changes) for show in _CHANGE_COLUMNS.values())]
        for name, outcome in outcomes.items()
    ]
    return markdown(Table([what, *_CHANGE_COLUMNS], rows))


def _or_dash(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def table(what: str, outcomes: Mapping[str, Outcome]) -> str:
    """Markdown: a row for each."""
    rows = [
        [name, *(show(outcome) for show in _COLUMNS.values())] for name, outcome in outcomes.items()
    ]
    return markdown(Table([what, *_COLUMNS], rows))


def verdict(outcome: Outcome) -> str:
    """Whether what was wanted is met, and whether it could be."""
    ratio = outcome.ratio(_STABLE)
    return (
        f"wanted: at most {WANTED_RATIO:g} of as given; "
        f"{'met' if ratio <= WANTED_RATIO else 'MISSED'}: {ratio:.3f}. Knowing every later"
        f" update: {_or_dash(outcome.foresight)}. The documents left out: "
        f"{outcome.ratio('left'):.3f}."
    )


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--queries", type=int, default=4997, help="sessions of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--trace", type=Path, nargs="+", help="files instead of generated traces")


def main(args: Namespace) -> list[str]:
    """Both tables, and whether what is wanted of the first is met."""
    if args.trace:
        traces = {path.name: recorded(path) for path in args.trace}
    else:
        traces = {f"generated, seed {seed}": generated(args.queries, seed) for seed in args.seeds}
    outcomes = {name: outcome_of(sessions) for name, sessions in traces.items()}
    print(table("trace", outcomes), change_table("trace", outcomes), sep="\n\n")
    sessions = [session for trace in traces.values() for session in trace]
    together = outcome_of(sessions)
    print(f"\n{verdict(together)}\n\nThe same sessions, updates drawn anew:\n", flush=True)
    redrawn = {name: _redrawn(name, model, sessions) for name, model in MODELS.items()}
    what = "a new document comes in"
    print(table(what, redrawn), change_table(what, redrawn), sep="\n\n")
    ratio = together.ratio(_STABLE)
    return [f"{ratio:.3f} of as given"] if ratio > WANTED_RATIO else []


def _redrawn(name: str, model: UpdateModel, sessions: Sequence[Lists]) -> Outcome:
    rng = random.Random(name)
    drawn = [model.redraw(each, rng) for each in sessions]
    return outcome_of(drawn, ranks_stay=not model.reranks)
