"""Measures the cost of KV digests: on a prefill engine, at a reader, and on the wire.

`prefill`: CPU time of a real engine from a prompt's arrival to its first token, digests on
and off in turn, as pairs; sampling a step's blocks, its rows and their keys are in it.
CPU time, since others on the machine add to all that a clock on the wall shows.

`reader`: sampling and comparing a prompt's blocks after a read, against what computing the
prompt takes: the part of a session that a reader adds.

`wire`: bytes of a digest, against the KV that it covers.

On this machine's CPU; a GPU computes a prompt a hundred times faster, but samples in
a few kernels whose launch it does not wait for (docs/handover.md).
"""

from __future__ import annotations

import os
import random
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer import get_kv_transfer_group

from experiments.pressure import in_a_process
from experiments.stopwatch import Stopwatch
from prefill_worker.kv_transfer import kv_transfer
from prefill_worker.local_engine import LocalEngine
from stream2llm.engine.kv_digest import (
    BlockKeys,
    Part,
    SampleJob,
    bad_values,
    combine,
    keys_from_wire,
    rows_to_wire,
)
from stream2llm.engine.kv_sampling import KvSampler
from stream2llm.models.catalogue import KNOWN_MODELS
from stream2llm.models.store import fetch_model
from stream2llm.serving.system.ports import pick_port
from stream2llm.workload.table import Table, markdown

BLOCK_SIZE = 32
MAX_MODEL_LEN = 4096
# Most time that digests may add, as a share of the time without them.
MAX_ADDED_SHARE = 0.01


class Costs:
    """One engine, whose digests are on and off in turn."""

    def __init__(self, model: str, num_tokens: int) -> None:
        os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(
            pick_port("127.0.0.1", f"{model}/{os.getpid()}")
        )
        nixl = {"kv_buffer_device": "cpu" if not torch.cuda.is_available() else "cuda"}
        self._engine = LocalEngine(
            fetch_model(model),
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=512,
            block_size=BLOCK_SIZE,
            enable_prefix_caching=True,
            kv_transfer_config=KVTransferConfig(**kv_transfer(nixl, swaps=False)),
        )
        self._num_tokens = num_tokens
        self._rng = random.Random(7)
        self._num_prompts = 0

    def prefill_s(self, *, are_on: bool) -> float:
        """CPU seconds until a new prompt's first token."""
        self._engine.scheduler.set_digests(are_on=are_on)
        self._num_prompts += 1
        tokens = self._tokens()
        with Stopwatch() as watch:
            self._engine.add(f"p{self._num_prompts}", tokens)
            while not any(output.new_token_ids for output in self._engine.step()):
                pass
        return watch.cpu_seconds

    def reader_s(self) -> float:
        """CPU seconds to derive a prompt's keys, and to sample and compare its blocks."""
        sampler: KvSampler = get_kv_transfer_group()._sampler
        tokens, num_blocks = self._tokens(), -(-self._num_tokens // BLOCK_SIZE)
        with Stopwatch() as watch:
            keys = keys_from_wire(BlockKeys(BLOCK_SIZE).to_wire(tokens))
            job = SampleJob.of_last(range(num_blocks), keys, len(tokens), BLOCK_SIZE)
            rows = sampler.begin(job).rows
            parts = combine([Part(0, rows)])
            bad_values(b"".join(rows_to_wire(rows)), parts, num_blocks)
        return watch.cpu_seconds

    def bytes_per_block(self) -> tuple[int, int]:
        """Bytes of a block's row, and of its KV."""
        config = self._engine.scheduler.kv_cache_config
        kv_bytes = sum(tensor.size for tensor in config.kv_cache_tensors[:1]) // config.num_blocks
        return 2 * sum(len(tensor.layers) for tensor in config.kv_cache_tensors), kv_bytes

    def close(self) -> None:
        self._engine.close()

    def _tokens(self) -> list[int]:
        return [self._rng.randrange(100, 4000) for _ in range(self._num_tokens)]


def measure(model: str, num_tokens: int, num_pairs: int) -> tuple[list[str], float]:
    """Returns a row of the table, and the share that prefill and reader add together."""
    costs = Costs(model, num_tokens)
    for are_on in (True, False):
        costs.prefill_s(are_on=are_on)
        costs.reader_s()
    pairs = []
    for number in range(num_pairs):
        order = (True, False) if number % 2 else (False, True)
        seconds = {are_on: costs.prefill_s(are_on=are_on) for are_on in order}
        pairs.append((seconds[False], seconds[True]))
    reader_s = median(costs.reader_s() for _ in range(num_pairs))
    row_bytes, kv_bytes = costs.bytes_per_block()
    costs.close()
    off_s = median(off for off, _ in pairs)
    added = median(on / off for off, on in pairs) - 1
    low, high = np.quantile([on / off - 1 for off, on in pairs], [0.25, 0.75])
    row = [
        model,
        f"{num_tokens:,}",
        f"{off_s * 1e3:.1f} ms",
        f"{added:+.2%} ({low:+.2%} to {high:+.2%})",
        f"{reader_s * 1e3:.2f} ms ({reader_s / off_s:.2%})",
        f"{row_bytes} B ({row_bytes / kv_bytes:.3%})",
    ]
    return row, added + reader_s / off_s


def add_options(parser: ArgumentParser) -> None:
    """The options of `python -m experiments kv-digest`."""
    parser.add_argument(
        "--models", nargs="+", default=["smollm2-135m-instruct"], choices=KNOWN_MODELS
    )
    parser.add_argument("--tokens", type=int, default=1024, help="of one prompt")
    parser.add_argument(
        "--pairs", type=int, default=12, help="of prompts, with digests and without"
    )


def main(args: Namespace) -> Sequence[str]:
    """Prints the costs; returns the bounds that are missed."""
    titles = (
        "model",
        "tokens",
        "prefill without",
        "with (quartiles of pairs)",
        "at the reader",
        "digest of a block",
    )
    rows, missed = [], []
    for model in args.models:
        row, share = in_a_process(measure, model, args.tokens, args.pairs)
        rows.append(row)
        if share > MAX_ADDED_SHARE:
            missed.append(f"{model}: digests add {share:.2%}, more than {MAX_ADDED_SHARE:.0%}")
    print(markdown(Table(titles, rows)))
    return missed
