"""The paper's settings, replayed in virtual time from its own recordings.

FOLDER is the artifact's `data` (a submodule of github.com/rajveerb/stream2llm): crawls in
`crawl/traces/simpleQA_ALL`, vector searches in `anns`, with `query_trace_map_5k.json`. What is
missing is left out. Arrivals are the published ones, delays are multiplied as there. Lengths are
estimated from words, or counted with `--tokenizer`.

It has been tried on small files of that form, and NOT been run on the recordings, which are not
to be had where it was written.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path

from experiments.paper.grid import comparisons, setting_name, table, verdict
from experiments.paper.h200 import load_fit
from experiments.paper.kept import Outcome
from experiments.paper.published import (
    NOT_STREAMED,
    Published,
    published,
    published_arrivals_s,
)
from experiments.paper.runs import NUM_QUERIES, Cell, play_tasks, ttfts_s
from stream2llm.simulator.work import Task, not_streamed, task
from stream2llm.workload.traces.anns_traces import anns_items
from stream2llm.workload.traces.check import TraceError
from stream2llm.workload.traces.crawler_csv import crawler_sessions
from stream2llm.workload.traces.format import Document, Item, Shape, SharedDocument
from stream2llm.workload.traces.imports import BadRow, Importing
from stream2llm.workload.traces.text import CountTokens, count_by_words

Importer = Callable[[Path, Iterator[float], Importing, Callable[[BadRow], None]], Iterator[Item]]
PLACES: Mapping[Shape, tuple[str, Importer]] = {
    "crawler": ("crawl/traces/simpleQA_ALL", crawler_sessions),
    "anns": ("anns/query_trace_map_5k.json", anns_items),
}


def recorded(folder: Path, shape: Shape, importing: Importing) -> list[Task]:
    """The sessions that were replayed, all of them arriving at 0."""
    place, importer = PLACES[shape]
    bad: list[BadRow] = []
    documents: dict[str, Document] = {}
    found: list[Task] = []
    for item in importer(folder / place, repeat(0.0), importing, bad.append):
        if isinstance(item, SharedDocument):
            documents[item.document.id] = item.document
        elif len(found) < NUM_QUERIES[shape]:
            found.append(task(item, item.document_table(documents)))
    print(f"{shape}: {len(found):,} sessions, {len(bad):,} left out", file=sys.stderr)
    return found


def arriving(sessions: Sequence[Task], rate: float) -> list[Task]:
    """The same with the published arrivals of that rate."""
    times_s = published_arrivals_s(rate, len(sessions))
    return [each.later(at_s) for each, at_s in zip(sessions, times_s, strict=True)]


def outcomes(sessions: Sequence[Task], wanted: Sequence[Published]) -> Iterator[Outcome]:
    """Plays them under each of these rows, which have one shape and one gap factor."""
    for each in wanted:
        asked = arriving(sessions, each.setting.rate)
        cell = Cell(each.setting, each.system)
        run = play_tasks(
            cell, load_fit(), not_streamed(asked) if each.system == NOT_STREAMED else asked
        )
        print(f"{setting_name(each.setting)} {each.system}", file=sys.stderr, flush=True)
        yield Outcome(cell, ttfts_s(run), run.counters)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the artifact's folder `data`")
    parser.add_argument("--tokenizer", help="count tokens with this model's: a name or a folder")


def main(args: Namespace) -> Iterator[str]:
    """Prints paper, recordings and ratio for every number."""
    shapes = [shape for shape, (place, _) in PLACES.items() if (args.folder / place).exists()]
    if not shapes:
        places = " nor ".join(place for place, _ in PLACES.values())
        raise TraceError(f"{args.folder}: has neither {places}")
    found: list[Outcome] = []
    for shape in shapes:
        for factor in dict.fromkeys(each.setting.gap_factor for each in _rows(shape)):
            importing = Importing(
                count_tokens=_counter(args.tokenizer), tokens_only=True, delay_factor=factor
            )
            sessions = recorded(args.folder, shape, importing)
            wanted = [each for each in _rows(shape) if each.setting.gap_factor == factor]
            found += outcomes(sessions, wanted)
    compared = comparisons(found)
    print(f"{table(compared)}\n\n{verdict(compared)}")
    yield from ()


def _rows(shape: Shape) -> list[Published]:
    return [each for each in published() if each.setting.shape == shape]


def _counter(tokenizer: str | None) -> CountTokens:
    if tokenizer is None:
        return count_by_words
    from stream2llm.models.token_counter import token_counter

    return token_counter(tokenizer)
