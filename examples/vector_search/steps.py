"""The example itself: an index, questions, ways to ask them, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, quantiles

from examples.vector_search.index import Index
from examples.vector_search.questions import Question, questions
from examples.vector_search.ways import Asked, Searching, Way, ask, refinements
from stream2llm.client import AsyncClient, SamplingParameters
from stream2llm.workload.table import Table, markdown

Say = Callable[[str], None]


async def run(
    address: str,
    index: Index,
    count: int,
    ways: Sequence[Way],
    searching: Searching,
    say: Say,
) -> list[Asked]:
    """Asks so many questions, each in every way; says recall, answers and a table."""
    asked_for = questions(index.texts, count)
    say(recall_table(index, asked_for, searching))
    results = []
    async with AsyncClient(address) as client:
        # The first steps of an engine are slow; they would count against the first way.
        await client.generate("Hello", sampling=SamplingParameters(max_tokens=4)).answer()
        for question in asked_for:
            say(f"\n{question.text}")
            for way in ways:
                asked = await ask(client, index, question, way, searching)
                say(_line(asked))
                results.append(asked)
    say(f"\n{result_table(results)}")
    return results


def _line(asked: Asked) -> str:
    mark = "right" if asked.is_right else f"wrong, it is {asked.question.name}"
    return f"  {asked.way:18}  {asked.latency_s:5.2f} s  {asked.answer!r} ({mark})"


def recall_table(index: Index, asked_for: Iterable[Question], searching: Searching) -> str:
    """Recall of the lists by number of probes, over the questions. Pure."""
    by_question = [refinements(index, each, searching) for each in asked_for]
    rows = [
        [
            f"{stage[0].num_probes} of {index.num_lists}",
            f"{stage[0].at_s:.2f}",
            f"{fmean(each.recall for each in stage):.0%}",
        ]
        for stage in zip(*by_question, strict=True)
    ]
    return markdown(Table(["probes", "after, s", f"recall@{searching.count}"], rows))


def result_table(results: Sequence[Asked]) -> str:
    """Latency and right answers by way. Pure."""
    titles = ["way", "P50, s", "P95, s", "right", "prompt tokens", "invalidated"]
    ways = dict.fromkeys(each.way for each in results)
    return markdown(Table(titles, [_row(way, of_way(results, way)) for way in ways]))


def of_way(results: Iterable[Asked], way: Way) -> list[Asked]:
    """The results of one way. Pure."""
    return [each for each in results if each.way is way]


def _row(way: Way, results: Sequence[Asked]) -> list[str]:
    p50_s, p95_s = latency_quantiles_s(results)
    num_right = sum(each.is_right for each in results)
    return [
        way.value,
        f"{p50_s:.2f}",
        f"{p95_s:.2f}",
        f"{num_right} of {len(results)}",
        f"{fmean(each.prompt_tokens for each in results):.0f}",
        f"{fmean(each.invalidated_tokens for each in results):.0f}",
    ]


def latency_quantiles_s(results: Sequence[Asked]) -> tuple[float, float]:
    """P50 and P95 of the time from the question to the first token. Pure."""
    latencies_s = [each.latency_s for each in results]
    if len(latencies_s) == 1:
        return latencies_s[0], latencies_s[0]
    cuts_s = quantiles(latencies_s, n=20, method="inclusive")
    return cuts_s[9], cuts_s[18]
