"""Metrics pages of prefill workers to samples and counters. Pure.

docs/operations.md has the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from stream2llm.serving.http.exposition import Page, merged, parse
from stream2llm.serving.settings.worker_spec import PREFILLING
from stream2llm.workload.records import Sample

KV_BLOCKS: Final = "stream2llm_kv_blocks"
KV_HELD: Final = "stream2llm_kv_blocks_held"
WORKER_SESSIONS: Final = "stream2llm_worker_sessions"
PREFILL_SESSIONS: Final = "stream2llm_prefill_sessions"
POLICY: Final = "stream2llm_scheduler_policy_info"
# Sample name, label that distinguishes kinds ("" for none), and what it is called in
# RunRecord.counters; "{}" is the label's value.
_COUNTERS: Final = (
    ("stream2llm_preemptions_total", "action", "preemptions_{}"),
    ("stream2llm_prefill_tokens_total", "kind", "{}_tokens"),
    ("stream2llm_swapped_blocks_total", "direction", "swapped_blocks_{}"),
    ("stream2llm_swap_failures_total", "", "swap_failures"),
    ("stream2llm_scheduler_guarded_sessions_total", "", "guarded_sessions"),
)
_WANTED: Final = (
    *(KV_BLOCKS, WORKER_SESSIONS, PREFILL_SESSIONS, POLICY),
    *(name for name, _, _ in _COUNTERS),
)


def page_of(text: str) -> Page:
    """What one scrape of one process said; nothing for one that does not prefill."""
    samples = parse(text, _WANTED).samples.items()
    return Page({k: v for k, v in samples if dict(k[1]).get("role", "prefill") in PREFILLING})


def counters_of(page: Page) -> dict[str, float]:
    """Counts since the process began, by their names in RunRecord.counters."""
    return {
        form.format(value): count
        for name, label, form in _COUNTERS
        for value, count in page.by_label(name, label).items()
    }


def policy_of(page: Page) -> str:
    """The scheduling policy of the process; "" when it does not say."""
    policies = page.by_label(POLICY, "policy").items()
    return next((policy for policy, is_followed in policies if is_followed), "")


def sample_of(at_s: float, pages: Iterable[Page]) -> Sample | None:
    """The system at one moment; None when no prefill worker was among the pages."""
    total = merged(pages)
    num_blocks = total.sum(KV_BLOCKS)
    if not num_blocks:
        return None
    return Sample(
        at_s=at_s,
        kv_usage=(total.sum(KV_HELD) or 0.0) / num_blocks,
        num_sessions=round(total.sum(WORKER_SESSIONS) or 0.0),
        num_with_work=round(total.sum(PREFILL_SESSIONS, state="with_work") or 0.0),
    )
