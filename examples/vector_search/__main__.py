"""`python -m examples.vector_search`: a search that streams its refinements, on a cluster of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from examples.command import AddressOption, ConfigOption, ask_a_cluster, say
from examples.vector_search.steps import latency_quantiles_s, of_way
from examples.vector_search.ways import Asked
from stream2llm.workload.report.plots import Plot, plot_style


def draw(results: Sequence[Asked]) -> Plot:
    """The figure; a line from a point reaches to the P95 of its latency."""
    from matplotlib.figure import Figure

    with plot_style():
        figure = Figure(figsize=(6.5, 3.6), layout="constrained")
        axes = figure.subplots()
        for number, way in enumerate(dict.fromkeys(each.way for each in results)):
            asked = of_way(results, way)
            p50_s, p95_s = latency_quantiles_s(asked)
            share = sum(each.is_right for each in asked) / len(asked)
            axes.plot([p50_s, p95_s], [share, share], color=f"C{number}", linewidth=1)
            axes.plot([p50_s], [share], "o", color=f"C{number}", label=way.value)
        axes.set(
            xlabel="from the question to the first token, s (P50, line to P95)",
            ylabel="right answers",
            ylim=(-0.05, 1.05),
        )
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return Plot("retrieval", "Latency and right answers by way", figure)


def main(
    address: AddressOption = None,
    config: ConfigOption = None,
    texts: Annotated[int, typer.Option("--texts", min=100, help="Docstrings to search.")] = 10_000,
    questions: Annotated[int, typer.Option("--questions", min=1, help="Questions to ask.")] = 3,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, help="How long a search takes.")
    ] = 3.0,
    stable: Annotated[
        bool, typer.Option("--stable", help="Keep documents at their places in the prompt.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also with the first results alone, and without any.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Draw the comparison into this file (SVG).")
    ] = None,
) -> None:
    """Search docstrings of Python and packages with ever more probes, and ask about them.

    Each new list of the search updates the session, which prefills while the search goes on;
    beside it the same question waits for the whole search.

    Example: python -m examples.vector_search

    Example: python -m examples.vector_search --questions 40 --compare --figure retrieval.svg
    """

    async def ask(router: str, model: str) -> None:
        from examples.vector_search.index import open_index
        from examples.vector_search.steps import run
        from examples.vector_search.ways import Searching, Way
        from stream2llm.client import DocumentOrdering
        from stream2llm.models.catalogue import DEFAULT_MODEL
        from stream2llm.workload.report.plots import to_svg

        # Whatever the cluster serves: these vectors need no forward pass.
        index = open_index(DEFAULT_MODEL, texts, say)
        ordering = DocumentOrdering.STABLE if stable else DocumentOrdering.AS_GIVEN
        ways = list(Way) if compare or figure else [Way.WAIT, Way.STREAM]
        searching = Searching(seconds, ordering=ordering)
        results = await run(router, index, questions, ways, searching, say)
        if figure is not None:
            figure.write_bytes(to_svg(draw(results)))
            say(f"written: {figure}")

    ask_a_cluster("vector_search", address, config, ask)


if __name__ == "__main__":
    typer.run(main)
