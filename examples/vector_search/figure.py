"""Draws latency from the question against the share of right answers, a point a way."""

from __future__ import annotations

from collections.abc import Sequence

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
