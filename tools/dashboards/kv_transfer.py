"""KV on its way from prefill to decode."""

from __future__ import annotations

from tools.dashboards.model import Dashboard, Panel, Query, Row, percentiles, rate, share

_READS = "stream2llm_kv_transfers_total"

KV_TRANSFER = Dashboard(
    "stream2llm-kv-transfer",
    "Stream2LLM / KV transfer",
    "How KV reaches decode: prefetched before the seal, or read after the first token.",
    (
        Row(
            "After the seal",
            (
                Panel(
                    "Seconds of a read",
                    "One KV read over NIXL after the seal.",
                    "s",
                    percentiles("stream2llm_kv_transfer_seconds"),
                ),
                Panel(
                    "Hand-overs",
                    "Hand-overs a second by result: read, failed, released without a read.",
                    "cps",
                    (Query(rate(_READS, "result"), "{{result}}"),),
                ),
                Panel(
                    "First to second token",
                    "Seconds of the hand-over as the client sees it, by hand-over mode.",
                    "s",
                    percentiles("stream2llm_handover_exposed_seconds", "handover"),
                ),
                Panel(
                    "Bytes",
                    "Bytes a second of prompts' KV, by when they crossed.",
                    "Bps",
                    (Query(rate("stream2llm_handover_bytes_total", "when"), "{{when}}"),),
                ),
            ),
        ),
        Row(
            "KV prefetch",
            (
                Panel(
                    "Prefetches",
                    "KV prefetches a second, by result.",
                    "cps",
                    (Query(rate("stream2llm_fetches_total", "result"), "{{result}}"),),
                ),
                Panel(
                    "Seconds of a prefetch",
                    "From the start of a read to its end.",
                    "s",
                    percentiles("stream2llm_fetch_seconds"),
                ),
                Panel(
                    "Wasted prefetch",
                    "Share of the prefetched blocks that no answer used.",
                    "percentunit",
                    (
                        Query(
                            share(
                                rate("stream2llm_handover_blocks_total", where='when="wasted"'),
                                rate(
                                    "stream2llm_handover_blocks_total",
                                    where='when=~"prefetched|wasted"',
                                ),
                            ),
                            "wasted",
                        ),
                    ),
                ),
                Panel(
                    "Prefetched share of KV",
                    "Share of the blocks that answers needed and that were at decode before the seal.",
                    "percentunit",
                    (
                        Query(
                            share(
                                rate("stream2llm_handover_blocks_total", where='when="prefetched"'),
                                rate(
                                    "stream2llm_handover_blocks_total",
                                    where='when=~"prefetched|after_seal"',
                                ),
                            ),
                            "prefetched",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
