"""Metrics pages of prefill workers to samples and counters. Pure.

docs/operations.md has the metrics. Only lines of ours are parsed: a page of a
worker is mostly vLLM's, and the generator has better things to do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample as PrometheusSample

from stream2llm.workload.records import Sample

_KV_BLOCKS: Final = "stream2llm_kv_blocks"
_KV_BLOCKS_HELD: Final = "stream2llm_kv_blocks_held"
_WORKER_SESSIONS: Final = "stream2llm_worker_sessions"
_PREFILL_SESSIONS: Final = "stream2llm_prefill_sessions"
_POLICY: Final = "stream2llm_scheduler_policy_info"
# Sample name, label that distinguishes kinds ("" for none), and what it is called in
# RunRecord.counters; "{}" is the label's value.
_COUNTERS: Final = (
    ("stream2llm_preemptions_total", "action", "preemptions_{}"),
    ("stream2llm_prefill_tokens_total", "kind", "{}_tokens"),
    ("stream2llm_swapped_blocks_total", "direction", "swapped_blocks_{}"),
    ("stream2llm_swap_failures_total", "", "swap_failures"),
    ("stream2llm_scheduler_promotions_total", "", "promotions"),
)
_LABELS: Final = {name: (label, form) for name, label, form in _COUNTERS}
_WANTED: Final = (_KV_BLOCKS, _WORKER_SESSIONS, _PREFILL_SESSIONS, _POLICY, *_LABELS)


class Page:
    """What one scrape of one process said; nothing for one that is no prefill worker."""

    def __init__(self, text: str) -> None:
        # By name, with the state behind a slash where there is one.
        self.gauges: dict[str, float] = defaultdict(float)
        # Since the process began, by their names in RunRecord.counters.
        self.counters: dict[str, float] = defaultdict(float)
        self.policy = ""
        for sample in _samples(text):
            if sample.labels.get("role", "prefill") == "prefill":
                self._take(sample.name, sample.labels, sample.value)

    def _take(self, name: str, labels: Mapping[str, str], value: float) -> None:
        if name in _LABELS:
            label, form = _LABELS[name]
            self.counters[form.format(labels.get(label, ""))] += value
        elif name == _POLICY and value:
            self.policy = labels.get("policy", "")
        else:
            state = labels.get("state")
            self.gauges[f"{name}/{state}" if state else name] += value


def sample_of(at_s: float, pages: Iterable[Page]) -> Sample | None:
    """The system at one moment; None when no prefill worker was among the pages."""
    total: dict[str, float] = defaultdict(float)
    for page in pages:
        for name, value in page.gauges.items():
            total[name] += value
    if not total[_KV_BLOCKS]:
        return None
    return Sample(
        at_s=at_s,
        kv_usage=total[_KV_BLOCKS_HELD] / total[_KV_BLOCKS],
        num_sessions=round(total[_WORKER_SESSIONS]),
        num_with_work=round(total[f"{_PREFILL_SESSIONS}/with_work"]),
    )


def increase(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What each counter gained; one that fell belongs to a process that began anew."""
    return {
        name: value - before.get(name, 0.0) if value >= before.get(name, 0.0) else value
        for name, value in after.items()
    }


def _samples(text: str) -> Iterable[PrometheusSample]:
    ours = (line for line in text.splitlines() if line.startswith(_WANTED))
    families = text_string_to_metric_families("\n".join(ours) + "\n")
    return (sample for family in families for sample in family.samples)
