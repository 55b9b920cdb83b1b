"""What a stable document order changes for update-mode, in tokens and in seconds."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from cost_profiles.decision import Mode
from experiments.kept import add_run_options
from experiments.paper.grid import outcomes, setting_name
from experiments.paper.kept import Outcome
from experiments.paper.published import QUANTILES, settings
from experiments.paper.runs import Cell
from stream2llm.api.options import DocumentOrdering
from stream2llm.serving.settings.worker_options import DEFAULT_POLICY
from stream2llm.workload.table import Table, markdown

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
    heads = [f"TTFT {name}, s" for name in QUANTILES]
    titles = ["setting", "ordering", "invalidated", "computed", *heads]
    return markdown(Table(titles, [_cells(each) for each in found], 2))


def _cells(found: Outcome) -> list[str]:
    counts = [found.counters[name] for name in ("invalidated_tokens", "computed_tokens")]
    numbers = [f"{count:,.0f}" for count in counts]
    numbers += [f"{found.ttft_s[name]:.3f}" for name in QUANTILES]
    return [setting_name(found.cell.setting), str(found.cell.ordering), *numbers]


def add_options(parser: ArgumentParser) -> None:
    """Adds the options that choose the simulated cells."""
    add_run_options(parser)
    parser.add_argument("--seed", type=int, default=1)


def main(args: Namespace) -> Sequence[str]:
    print(table(outcomes(cells(args.seed), args)))
    return ()
