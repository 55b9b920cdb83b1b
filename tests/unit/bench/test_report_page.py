"""Figures, the page, and `stream2llm bench report`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stream2llm.workload.records import RunRecord, Sample
from stream2llm.workload.report import save_run, write_report
from stream2llm.workload.report.page import Image, report_html
from stream2llm.workload.report.series import MAX_POINTS, ccdf, run_labels, thinned, ttft_by_load
from tests.command_lines import check_failed, cli
from tests.runs import a_failed_record, a_record, a_run, with_ttfts


def two_systems() -> list[RunRecord]:
    return [
        a_run(*with_ttfts([0.1, 0.2, 0.3]), system="ours"),
        a_run(*with_ttfts([0.1, 0.4]), *[a_failed_record(due_s=2.0)], system="<theirs>"),
    ]


def test_reports_know_no_cluster() -> None:
    script = (
        "import sys, stream2llm.workload.report\n"
        "heavy = {'grpc', 'ray', 'vllm', 'asyncio', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


# -- the points of the plots -----------------------------------------------------------


def test_a_ccdf_tells_the_share_that_is_at_least_as_large() -> None:
    assert ccdf([3.0, 1.0, 2.0, 3.0]) == ([1, 2, 3, 3], [1.0, 0.75, 0.5, 0.25])


def test_the_tail_of_a_long_ccdf_is_whole() -> None:
    line = ccdf([float(number) for number in range(50_000)])
    assert len(line.x) <= MAX_POINTS
    assert line.x[-5:] == [49_995, 49_996, 49_997, 49_998, 49_999]
    assert (line.x[0], line.y[0]) == (0, 1.0)


def test_loads_are_in_order_and_runs_without_one_left_out() -> None:
    fast, slow = a_run(*with_ttfts([0.1] * 3, gap_s=0.5)), a_run(*with_ttfts([0.2] * 3))
    points = ttft_by_load([fast, slow, a_run(a_record())], 50.0)
    assert [point.request_rate for point in points] == [1.0, 2.0]
    assert [point.ttft_s for point in points] == pytest.approx([0.2, 0.1])


def test_thinning_keeps_peaks() -> None:
    samples = [Sample(float(n), 1.0 if n == 4321 else 0.1, 0, 0) for n in range(10_000)]
    kept = thinned(samples)
    assert len(kept) <= MAX_POINTS
    assert samples[4321] in kept
    assert thinned(samples[:3]) == samples[:3]
    assert thinned([]) == []


def test_runs_get_names_that_differ() -> None:
    runs = [a_run(*with_ttfts([0.1] * 2, gap_s=gap)) for gap in (1.0, 0.5, 0.5)]
    other = a_run(*with_ttfts([0.1] * 2), system="other")
    assert run_labels([*runs, other]) == [
        "ours at 1/s",
        "ours at 2/s #1",
        "ours at 2/s #2",
        "other",
    ]


# -- figures ----------------------------------------------------------------------------


def test_every_figure_is_drawn_and_drawn_alike() -> None:
    pytest.importorskip("matplotlib")
    from stream2llm.workload.report.plots import plots_of, to_svg

    plots = plots_of(two_systems())
    assert [plot.name for plot in plots] == ["ttft_ccdf", "ttft_load", "timeline_1", "timeline_2"]
    for plot, again in zip(plots, plots_of(two_systems()), strict=True):
        svg = to_svg(plot)
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert svg == to_svg(again)


def test_what_has_no_points_has_no_figure() -> None:
    pytest.importorskip("matplotlib")
    from stream2llm.workload.report.plots import plots_of

    assert plots_of([a_run(a_failed_record(), samples=())]) == []


# -- the page -----------------------------------------------------------------------------


class Checker(HTMLParser):
    """Whether every tag is closed, and what is referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    page = report_html(two_systems(), [Image("a <title>", b"<svg/>")], ours="ours")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.sources) == 1
    assert checker.sources[0].startswith("data:image/svg+xml;base64,")
    assert "<theirs>" not in page
    assert "&lt;theirs&gt;" in page
    assert "ours compared" in page
    assert "UNAVAILABLE" in page


def test_the_page_warns_of_a_late_generator() -> None:
    page = report_html([a_run(a_record(generator_lateness_s=3.0))], [])
    assert 'class="warning"' in page
    assert 'class="warning"' not in report_html([a_run()], [])


def test_without_matplotlib_there_is_everything_but_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream2llm.workload.report.write.can_draw", lambda: False)
    paths = write_report([a_run()], tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.html", "report.md", "summary.json"]


# -- the command ----------------------------------------------------------------------------


run = partial(cli, "bench", "report")


def saved(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for record, path in zip(two_systems(), paths, strict=True):
        save_run(record, path)
    return paths


def test_report_makes_one_page_of_several_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "out"
    result = run(*saved(tmp_path), "--ours", "ours", "-o", output)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(output / "report.html")
    page = (output / "report.html").read_text()
    assert len(re.findall("<img ", page)) == 4
    assert json.loads((output / "summary-2.json").read_text())["failed"] == 1
    assert "## Compared" in (output / "report.md").read_text()


def test_a_system_that_no_run_is_of_is_refused(tmp_path: Path) -> None:
    result = run(*saved(tmp_path), "--ours", "nobody", "-o", tmp_path / "out")
    check_failed(result, 3, "there are: <theirs>, ours")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    result = run(tmp_path / "bad.json", "-o", tmp_path / "out")
    check_failed(result, 3, "bad.json")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    result = run(*saved(tmp_path), "-o", tmp_path / "taken")
    check_failed(result, 3, "taken: cannot be written")
