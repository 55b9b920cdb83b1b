"""vLLM's figures of NIXL reads, with the reads that ended after their lease.

They travel with each step's statistics from the ranks to the actor, as vLLM's own do.
"""

from __future__ import annotations

from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats

from decode_worker.lease_watch import STATS, Expiry


class ReadStats(NixlKVConnectorStats):
    """The figures of one rank since the last step that reported any."""

    def reset(self) -> None:
        """Begins anew; vLLM wants lists of numbers."""
        super().reset()
        self.data.update({name: [] for name in STATS.values()})

    def record_expired_read(self, expiry: Expiry) -> None:
        """Records a read that ended after its lease."""
        self.data[STATS[expiry]].append(1)

    def is_empty(self) -> bool:
        """Whether no read was counted."""
        return super().is_empty() and not any(self.data[name] for name in STATS.values())
