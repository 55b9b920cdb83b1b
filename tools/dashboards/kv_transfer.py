"""KV on its way from prefill to decode: all is 0 where only mixed workers are."""

from __future__ import annotations

from tools.dashboards.model import (
    Dashboard,
    Query,
    else_zero,
    panel,
    percentiles,
    rate,
    rates,
    row,
    share,
)

_BLOCKS = "stream2llm_handover_blocks_total"


def _share_of_blocks(when: str, of: str) -> str:
    return share(rate(_BLOCKS, where=f'when="{when}"'), rate(_BLOCKS, where=f'when=~"{of}"'))


_AFTER_SEAL = row(
    "After the seal",
    panel(
        "Seconds of a read",
        "One KV read over NIXL after the seal.",
        "s",
        *percentiles("stream2llm_kv_transfer_seconds", or_zero=True),
    ),
    panel(
        "Hand-overs",
        "Hand-overs a second by result: read, failed, released without a read.",
        "cps",
        rates("stream2llm_kv_transfers_total", "result", or_zero=True),
    ),
    panel(
        "First to second token",
        "Seconds of the hand-over as the client sees it, by hand-over mode.",
        "s",
        *percentiles("stream2llm_handover_exposed_seconds", "handover", or_zero=True),
    ),
    panel(
        "Bytes",
        "Bytes a second of prompts' KV, by when they crossed.",
        "Bps",
        rates("stream2llm_handover_bytes_total", "when", or_zero=True),
    ),
)
_PREFETCH = row(
    "KV prefetch",
    panel(
        "Prefetches",
        "KV prefetches a second, by result.",
        "cps",
        rates("stream2llm_fetches_total", "result", or_zero=True),
    ),
    panel(
        "Reads of other KV",
        "Reads an hour whose KV was not what prefill had computed; no token was computed from it.",
        "short",
        Query(
            else_zero(
                "sum by (worker, when) (increase(stream2llm_kv_digest_mismatches_total[1h]))"
            ),
            "{{worker}} {{when}}",
        ),
    ),
    panel(
        "Reads that ended after their lease",
        "Reads an hour that were not used, because their lease had ended, by why it was not extended.",
        "short",
        Query(
            else_zero("sum by (worker, reason) (increase(stream2llm_kv_reads_expired_total[1h]))"),
            "{{worker}} {{reason}}",
        ),
    ),
    panel(
        "Seconds of a prefetch",
        "From the start of a read to its end.",
        "s",
        *percentiles("stream2llm_fetch_seconds", or_zero=True),
    ),
    panel(
        "Wasted prefetch",
        "Share of the prefetched blocks that no answer used.",
        "percentunit",
        Query(else_zero(_share_of_blocks("wasted", "prefetched|wasted")), "wasted"),
    ),
    panel(
        "Prefetched share of KV",
        "Share of the blocks that answers needed and that were at decode before the seal.",
        "percentunit",
        Query(else_zero(_share_of_blocks("prefetched", "prefetched|after_seal")), "prefetched"),
    ),
)
KV_TRANSFER = Dashboard(
    "stream2llm-kv-transfer",
    "Stream2LLM / KV transfer",
    "How KV reaches decode: prefetched before the seal, or read after the first token.",
    (_AFTER_SEAL, _PREFETCH),
)
