"""One HTML page that holds everything: no script, no other file, no network.

Figures are SVG images inside the page. As images, because the ids and styles
of several SVGs in one document would meet.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Final, NamedTuple

from jinja2 import Environment

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
from stream2llm.workload.report.summary import summarize
from stream2llm.workload.table import Table


class Image(NamedTuple):
    """A figure for the page."""

    title: str
    svg: bytes

    @property
    def base64(self) -> str:
        """The SVG as a data URL has it."""
        return b64encode(self.svg).decode("ascii")


def report_html(runs: Sequence[RunRecord], images: Sequence[Image], ours: str | None = None) -> str:
    """The page; with `ours` that system is compared with the others."""
    summaries = [summarize(run) for run in runs]
    # Each with its title, a table or a figure, and a note.
    sections: list[tuple[str, Table | Image, str]] = [("Runs", runs_table(summaries), "")]
    if ours is not None and (found := compare(runs, ours)):
        sections.append((f"{ours} compared", comparisons_table(found), _COMPARED))
    sections += [(image.title, image, "") for image in images]
    sections.append(("Latencies", latency_table(summaries), _LATENCIES))
    sections.append(("Tokens", tokens_table(summaries), _TOKENS))
    if any(each.errors for each in summaries):
        sections.append(("Errors", errors_table(summaries), ""))
    sections.append(("Settings and counters", settings_table(runs), ""))
    title = f"Benchmark: {', '.join(dict.fromkeys(each.system for each in summaries))}"
    return _PAGE.render(title=title, warnings=warnings_of(summaries), sections=sections)


_LATENCIES: Final = (
    "Sessions with a whole answer count. TTFT: from the seal, which is when the last document is here, "
    "or from the open, to the first token; from the due seal: from when the trace had the last document, "
    "so that a system which admits no session gains nothing. Inter-token latency: gaps between messages. Lateness: how "
    "long after it was due an event was submitted, waiting for the system included."
)
_TOKENS: Final = (
    "Prompts and answers: of sessions with a whole answer. The rest, of all sessions, is what became "
    "of prompt tokens: computed, found in a cache, thrown away by updates, computed again after a "
    "preemption. Preemptions: sessions whose KV was taken for others. – where it was not counted."
)
_COMPARED: Final = (
    "Ours divided by theirs, with the 95 % bootstrap interval; better or worse only where it excludes "
    "1. Failed sessions, ours and theirs, have no latency: read both together."
)
# Everything that is inserted is escaped.
_PAGE: Final = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""
{%- macro row(tag, cells, num_left) -%}
<tr>
{%- for text in cells -%}
{%- set marked = ("better", "worse", "equal") -%}
{%- set names = (["left"] if loop.index0 < num_left else []) + [text] | select("in", marked) | list -%}
<{{ tag }}{% if names %} class="{{ names | join(" ") }}"{% endif %}>{{ text }}</{{ tag }}>
{%- endfor -%}
</tr>
{%- endmacro -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>

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
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for text in warnings %}
<p class="warning">{{ text }}</p>
{% endfor %}
{% for title, content, note in sections %}
<section><h2>{{ title }}</h2>
{% if content.svg %}
<figure><img alt="{{ title }}" src="data:image/svg+xml;base64,{{ content.base64 }}"></figure>
{% else %}
<div class="scroll"><table><thead>{{ row("th", content.titles, content.num_left) }}</thead><tbody>
{% for cells in content.rows %}
{{ row("td", cells, content.num_left) }}
{% endfor %}
</tbody></table></div>
{% endif %}
{% if note %}<p>{{ note }}</p>{% endif %}</section>
{% endfor %}
</body>
</html>
""")
