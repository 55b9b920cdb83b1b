"""Has an engine's KV blocks sampled in the step that completes them (see digests.py).

The adapter between `BlockDigests` and vLLM: what a step writes goes to the connector as a job,
and the samples come back with the step's output. Without digests each call does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput

from prefill_worker.blocks import LiveLedger
from prefill_worker.digests import BlockDigests, Written
from prefill_worker.nixl_connector import STEP, NixlConnector
from prefill_worker.progress_reporting import LiveSession
from prefill_worker.session_table import SessionTable
from stream2llm.engine.kv_digest import DIGEST_KEY, combine
from stream2llm.engine.kv_sampling import find_samples


class DigestSampling:
    """Samples blocks as long as `blocks` is not None; else hand-overs have no digests."""

    def __init__(self, nixl: NixlConnector | None, ledger: LiveLedger, block_size: int) -> None:
        self._nixl = nixl
        self._ledger = ledger
        self._block_size = block_size
        self.blocks = self._create()

    def _create(self) -> BlockDigests | None:
        if self._nixl is None:
            return None
        return BlockDigests(self._block_size) if self._nixl.has_digests else None

    def switch(self, *, are_on: bool) -> None:
        """Samples blocks from the next step on, or does not."""
        self.blocks = self._create() if are_on else None

    def touch(self, request_id: str, num_computed_tokens: int) -> None:
        """The session has so many computed tokens now."""
        if self.blocks is not None:
            self.blocks.touch(request_id, num_computed_tokens)

    def forget(self, request_id: str) -> None:
        """The session has ended."""
        if self.blocks is not None:
            self.blocks.forget(request_id)

    def restored(self, request_id: str, start: int, stop: int) -> None:
        """The session's tokens [start, stop) have got KV otherwise than by computing it."""
        if self.blocks is not None:
            first, last = start // self._block_size, stop // self._block_size
            self.blocks.overwritten(self._ledger.block_ids(request_id, first, last))

    def plan(
        self, output: SchedulerOutput, live: Mapping[str, LiveSession], table: SessionTable
    ) -> None:
        """Has the blocks sampled that the step completes."""
        if self.blocks is not None and self._nixl is not None:
            behind = self.blocks.behind
            self._nixl.sample(self.blocks.plan(self._written(output, behind, live, table)))

    def _written(
        self,
        output: SchedulerOutput,
        behind: frozenset[str],
        live: Mapping[str, LiveSession],
        table: SessionTable,
    ) -> Iterator[Written]:
        """Yields what the step does to each session; the base class has not counted it yet."""
        for request_id in {*output.num_scheduled_tokens, *behind}:
            request = live[request_id].request
            num_before = request.num_computed_tokens
            yield Written(
                request_id,
                request._all_token_ids,
                partial(self._ledger.block_ids, request_id),
                num_before,
                num_before + output.num_scheduled_tokens.get(request_id, 0),
                is_sealed=table.view(request_id).sealed,
            )

    def take(self, output: KVConnectorOutput | None) -> None:
        """Keeps the samples of the step's blocks, which its hand-overs carry."""
        samples = find_samples(output.kv_connector_worker_meta) if output is not None else None
        if samples is not None:
            assert self.blocks is not None
            self.blocks.take(combine(samples.taken()[STEP]).rows)

    def add_to(self, params: dict[str, Any], request_id: str) -> None:
        """Adds the digests of the blocks that a session offers, or hands over, to their parameters."""
        if self.blocks is not None:
            block_ids = params["remote_block_ids"][0]
            params[DIGEST_KEY] = self.blocks.digest(request_id, block_ids)
