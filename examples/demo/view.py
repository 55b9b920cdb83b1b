"""What the demo shows: a live panel on a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from examples.demo.documents import EXPLANATIONS, Way
from examples.demo.run import Result, Snapshot
from stream2llm.serving.observability.logs import for_terminal


class LinesView:
    """One line for each thing that happens; the answer grows on a line of its own."""

    def __init__(self) -> None:
        self._last: Snapshot | None = None

    def say(self, line: str) -> None:
        print(for_terminal(line), flush=True)

    def begin(self, way: Way) -> None:
        self._last = Snapshot(way)
        self.say(f"\n== {way}: {EXPLANATIONS[way]}")

    def show(self, snapshot: Snapshot) -> None:
        last, self._last = self._last or snapshot, snapshot
        if snapshot.news != last.news:
            self.say(f"{snapshot.elapsed_s:6.1f} s  {snapshot.news}")
        if snapshot.answer != last.answer:
            if not last.answer:
                print(for_terminal(f"{snapshot.elapsed_s:6.1f} s  answer: "), end="")
            print(for_terminal(snapshot.answer[len(last.answer) :]), end="", flush=True)
        elif snapshot.progress != last.progress and not snapshot.answer:
            self.say(f"{snapshot.elapsed_s:6.1f} s    {counts(snapshot)}")

    def end(self) -> None:
        if self._last is not None and self._last.answer:
            print(flush=True)
        self._last = None

    def table(self, results: Sequence[Result]) -> None:
        Console(width=80).print(result_table(results))


class LiveView:
    """A panel that changes in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def say(self, line: str) -> None:
        # Not wrapped: commands are there to be copied.
        self._console.print(for_terminal(line), markup=False, highlight=False, soft_wrap=True)

    def begin(self, way: Way) -> None:
        self._live = Live(panel(Snapshot(way)), console=self._console, refresh_per_second=10)
        self._live.start()

    def show(self, snapshot: Snapshot) -> None:
        if self._live is not None:
            self._live.update(panel(snapshot))

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def table(self, results: Sequence[Result]) -> None:
        self._console.print(result_table(results))


View = LinesView | LiveView


def make_view() -> View:
    """The view that fits where the output goes."""
    console = Console()
    return LiveView(console) if console.is_terminal else LinesView()


def counts(snapshot: Snapshot) -> str:
    """The figures of the server's latest progress."""
    progress = snapshot.progress
    return (
        f"tokens: {progress.received_tokens} received, {progress.prefilled_tokens} prefilled, "
        f"{progress.reused_tokens} reused, {progress.invalidated_tokens} invalidated"
    )


def panel(snapshot: Snapshot) -> Panel:
    """One way, as it stands."""
    progress = snapshot.progress
    bar = ProgressBar(
        total=max(1, progress.received_tokens), completed=progress.prefilled_tokens, width=60
    )
    lines = Group(
        Text(EXPLANATIONS[snapshot.way], style="dim"),
        Text(for_terminal(f"{snapshot.elapsed_s:5.1f} s  {snapshot.news}")),
        Text(counts(snapshot)),
        Padding(bar, 0),  # a bar alone ends without a line break
        Text(for_terminal(snapshot.answer.strip()) or "…", style="bold"),
    )
    return Panel(lines, title=escape(str(snapshot.way)), title_align="left")


def result_table(results: Sequence[Result]) -> Table:
    """The ways side by side; fits into 80 columns. Counts are of tokens."""
    title = "Three ways to the same answer (tokens; TTFT: time to first token)"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("way", no_wrap=True)
    headers = ("docs", "prompt", "left at\nseal", "com-\nputed", "reused", "invali-\ndated")
    for header in headers:
        table.add_column(header, justify="right")
    table.add_column("TTFT from\nseal", justify="right", style="bold")
    table.add_column("TTFT from\nopen", justify="right")
    for result in results:
        usage = result.finished.usage
        table.add_row(
            str(result.way),
            str(result.num_documents),
            str(usage.prompt_tokens),
            str(usage.uncomputed_at_seal_tokens),
            str(usage.computed_tokens),
            str(usage.reused_tokens),
            str(usage.invalidated_tokens),
            f"{result.ttft_from_seal_s:.2f} s",
            f"{result.ttft_from_open_s:.2f} s",
        )
    return table
