"""One HTML page that holds everything: no script, no other file, no network.

Figures are SVG images inside the page. As images, because the ids and styles
of several SVGs in one document would meet.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, NamedTuple

from stream2llm.workload.records import RunRecord
from stream2llm.workload.report.compare import compare
from stream2llm.workload.report.markdown import (
    comparisons_table,
    errors_table,
    latency_table,
    runs_table,
    settings_table,
    tokens_table,
    warnings_of,
)
from stream2llm.workload.report.summary import Summary, summarize
from stream2llm.workload.table import Table


class Image(NamedTuple):
    """A figure for the page."""

    title: str
    svg: bytes


def report_html(runs: Sequence[RunRecord], images: Sequence[Image], ours: str | None = None) -> str:
    """The page; with `ours` that system is compared with the others."""
    summaries = [summarize(run) for run in runs]
    parts = [f"<h1>{escape(_title(summaries))}</h1>"]
    parts += [f'<p class="warning">{escape(text)}</p>' for text in warnings_of(summaries)]
    parts += [_section("Runs", _table(runs_table(summaries)))]
    if ours is not None and (found := compare(runs, ours)):
        table = _table(comparisons_table(found))
        parts += [_section(f"{ours} compared", f"{table}<p>{_COMPARED}</p>")]
    parts += [_figure(image) for image in images]
    parts += [_section("Latencies", f"{_table(latency_table(summaries))}<p>{_LATENCIES}</p>")]
    parts += [_section("Tokens", f"{_table(tokens_table(summaries))}<p>{_TOKENS}</p>")]
    if any(each.errors for each in summaries):
        parts += [_section("Errors", _table(errors_table(summaries)))]
    parts += [_section("Settings and counters", _table(settings_table(runs)))]
    return _PAGE.format(title=escape(_title(summaries)), style=_STYLE, body="\n".join(parts))


def _title(summaries: Iterable[Summary]) -> str:
    systems = dict.fromkeys(each.system for each in summaries)
    return f"Benchmark: {', '.join(systems)}"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _figure(image: Image) -> str:
    source = b64encode(image.svg).decode("ascii")
    title = escape(image.title, quote=True)
    picture = f'<img alt="{title}" src="data:image/svg+xml;base64,{source}">'
    return _section(image.title, f"<figure>{picture}</figure>")


def _table(table: Table) -> str:
    head = _row("th", table.titles, table.num_left)
    body = "\n".join(_row("td", row, table.num_left) for row in table.rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _row(tag: str, cells: Sequence[str], num_left: int) -> str:
    return (
        f"<tr>{''.join(_cell(tag, text, left=n < num_left) for n, text in enumerate(cells))}</tr>"
    )


def _cell(tag: str, text: str, *, left: bool) -> str:
    names = [*(["left"] if left else []), *([text] if text in _MARKED else [])]
    classes = f' class="{" ".join(names)}"' if names else ""
    return f"<{tag}{classes}>{escape(text)}</{tag}>"


_MARKED: Final = ("better", "worse", "equal")
_LATENCIES: Final = (
    "Of sessions with a whole answer. TTFT: from the seal, which is when the last document is here, "
    "or from the open, to the first token; from the due seal: from when the trace had the last document, "
    "so that a system which lets nobody in gains nothing. Inter-token latency: gaps between messages. Lateness: how "
    "long after it was due an event was submitted, waiting for the system included."
)
_TOKENS: Final = (
    "Prompts and answers: of sessions with a whole answer. The rest, of all sessions, is what became "
    "of prompt tokens: computed, found in a cache, thrown away by updates, computed again after a "
    "preemption. Preemptions: sessions whose KV was taken for others. – where nobody counted."
)
_COMPARED: Final = (
    "Ours divided by theirs, with the 95 % bootstrap interval; better or worse only where it excludes "
    "1. Failed sessions, ours and theirs, have no latency: read both together."
)
_STYLE: Final = """
body { margin: 0 auto; padding: 2rem 1.5rem; max-width: 76rem; color: #1c2330; background: #f6f7f9;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; }
h2 { font-size: 1.05rem; margin: 0 0 .7rem; }
section { background: #fff; border: 1px solid #e2e6ec; border-radius: 10px; padding: 1rem 1.2rem;
  margin: 0 0 1.1rem; }
section p { color: #5a6475; font-size: .86rem; margin: .7rem 0 0; max-width: 60rem; }
.warning { background: #fff4e0; border-left: 4px solid #e69500; padding: .7rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #edf0f4; white-space: nowrap; }
th { color: #5a6475; font-weight: 600; border-bottom: 2px solid #d9dee6; }
tbody tr:hover { background: #f6f8fb; }
.left { text-align: left; }
.better { color: #0a7d3f; font-weight: 600; }
.worse { color: #b3261e; font-weight: 600; }
figure { margin: 0; }
img { width: 100%; max-width: 60rem; height: auto; display: block; margin: auto; }
"""
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
