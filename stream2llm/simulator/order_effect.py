"""What a stable document order changes for update-mode, in tokens and in seconds."""

from __future__ import annotations

from collections.abc import Sequence

from cost_profiles.decision import Mode
from stream2llm.api.ordering import DocumentOrdering
from stream2llm.serving.worker_options import DEFAULT_POLICY
from stream2llm.simulator.grid import Outcome, setting_name
from stream2llm.simulator.paper_runs import Cell
from stream2llm.simulator.published import QUANTILES, settings

ORDERINGS = (DocumentOrdering.AS_GIVEN, DocumentOrdering.STABLE)


def cells(seed: int, policy: str = DEFAULT_POLICY) -> list[Cell]:
    """Both orders in each ANNS setting, one after the other."""
    return [
        Cell(setting, policy, seed, whole_requests=False, ordering=ordering)
        for setting in settings()
        if setting.shape == "anns" and setting.mode is Mode.COST
        for ordering in ORDERINGS
    ]


def table(found: Sequence[Outcome]) -> str:
    """Markdown: tokens invalidated after they were computed, tokens computed, and TTFT."""
    heads = " | ".join(f"TTFT {name}, s" for name in QUANTILES)
    lines = [
        f"| setting | ordering | invalidated | computed | {heads} |",
        "|---|---|--:|--:|" + "--:|" * len(QUANTILES),
    ]
    for each in found:
        counts = (each.counters[name] for name in ("invalidated_tokens", "computed_tokens"))
        numbers = [*(f"{count:,.0f}" for count in counts)]
        numbers += [f"{each.ttft_s[name]:.3f}" for name in QUANTILES]
        where = f"{setting_name(each.cell.setting)} | {each.cell.ordering}"
        lines.append(f"| {where} | {' | '.join(numbers)} |")
    return "\n".join(lines)
