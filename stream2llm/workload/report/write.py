"""A report into a folder: JSON, Markdown, figures and one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from stream2llm.workload.records import RunRecord
from stream2llm.workload.report.as_json import summary_to_json
from stream2llm.workload.report.markdown import report_markdown
from stream2llm.workload.report.page import Image, report_html
from stream2llm.workload.report.save import RunFileError
from stream2llm.workload.report.summary import summarize

if TYPE_CHECKING:
    from stream2llm.workload.report.plots import Plot

PAGE = "report.html"


def can_draw() -> bool:
    """Whether there will be figures; everything else needs no matplotlib."""
    return find_spec("matplotlib") is not None


def write_report(runs: Sequence[RunRecord], folder: Path, ours: str | None = None) -> list[Path]:
    """Writes all files and returns them, the page first.

    With `ours` that system is compared with the others. One run has its figures
    in summary.json, several in summary-1.json and so on. Raises RunFileError
    when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return list(_write(runs, folder, ours))
    except OSError as error:
        raise RunFileError(f"{folder}: cannot be written: {error}", field="--output") from error


def _write(runs: Sequence[RunRecord], folder: Path, ours: str | None) -> list[Path]:
    drawn = _draw(runs, folder) if can_draw() else []
    images = [Image(plot.title, path.read_bytes()) for plot, path in drawn]
    page, text = folder / PAGE, folder / "report.md"
    page.write_text(report_html(runs, images, ours), encoding="utf-8")
    text.write_text(report_markdown(runs, ours), encoding="utf-8")
    return [page, text, *_write_summaries(runs, folder), *(path for _, path in drawn)]


def _draw(runs: Sequence[RunRecord], folder: Path) -> list[tuple[Plot, Path]]:
    from stream2llm.workload.report.plots import plots_of, to_svg

    drawn = [(plot, folder / f"{plot.name}.svg") for plot in plots_of(runs)]
    for plot, path in drawn:
        path.write_bytes(to_svg(plot))
    return drawn


def _write_summaries(runs: Sequence[RunRecord], folder: Path) -> list[Path]:
    """One object a file, as `vllm bench serve` writes its results."""
    single = len(runs) == 1
    names = ["summary"] if single else [f"summary-{n}" for n in range(1, len(runs) + 1)]
    paths = [folder / f"{name}.json" for name in names]
    for run, path in zip(runs, paths, strict=True):
        text = json.dumps(summary_to_json(summarize(run)), indent=2)
        path.write_text(f"{text}\n", encoding="utf-8")
    return paths
