"""Samples KV blocks on one rank: the values that a digest is made of (kv_digest.py).

On a GPU a job is one gather of a few words from all its blocks and layers, some
elementwise kernels on these, and one copy to pinned host memory. `begin` only queues
them; the host waits for the device only where values are taken before they have arrived.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, MLAAttentionSpec

from stream2llm.engine.kv_digest import (
    NUM_SAMPLES,
    UNCOVERED_SPLITS,
    Part,
    Rows,
    SampleJob,
    places,
)

# Odd, so that neighbouring layers and heads differ; products fit 63 bits.
_WORDS_PER_LAYER = 5
_HEAD_SALT = 0x3C6EF372
_SAMPLE_SALT = 0x1B873593
_MIX_1 = 0x2C1B3C6D
_MIX_2 = 0x297A2D39
_LOW_31_BITS = (1 << 31) - 1
# Sampled words at a time: some arrays of so many 8-byte numbers are there at once.
_MAX_SAMPLES = 1 << 20


def require_covered(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
    """Raises ValueError for KV that digests do not cover, as what is read of it would pass unchecked.

    They cover one group of full attention, and no split of layers or tokens.
    """
    for name in UNCOVERED_SPLITS:
        if getattr(vllm_config.parallel_config, name) > 1:
            raise _unsupported(f"{name} is above 1")
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1 or not isinstance(groups[0].kv_cache_spec, FullAttentionSpec):
        raise _unsupported("not all layers have full attention")


def first_head(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, tp_rank: int) -> int:
    """Returns the number of a rank's first KV head; ranks may hold copies of the same heads."""
    if isinstance(kv_cache_config.kv_cache_groups[0].kv_cache_spec, MLAAttentionSpec):
        return 0
    num_heads: int = vllm_config.model_config.get_total_num_kv_heads()
    num_ranks: int = vllm_config.parallel_config.tensor_parallel_size
    return tp_rank * num_heads // num_ranks


@dataclass
class Samples:
    """Values under way from the device; `rows` are of shape [blocks, layers]."""

    _values: torch.Tensor
    # Passed when the values are in host memory; None: they are.
    _copied: Any = None
    # Kept until the device has read them.
    _inputs: Sequence[torch.Tensor] = ()

    @property
    def is_ready(self) -> bool:
        """Whether the values can be taken without waiting for the device."""
        return self._copied is None or bool(self._copied.query())

    @property
    def rows(self) -> Rows:
        """The values; waits for the device if they are not there."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied, self._inputs = None, ()
        rows: Rows = self._values.numpy().astype(np.uint16)
        return rows


class KvSampler:
    """Samples the KV caches of one rank."""

    def __init__(
        self,
        kv_caches: Mapping[str, torch.Tensor],
        kv_cache_config: KVCacheConfig,
        head: int,
        *,
        in_stream: bool,
    ) -> None:
        """`kv_caches` are vLLM's views of blocks, heads, tokens and content, by layer name.

        `head` is the rank's first KV head. With `in_stream` jobs follow what the caller's stream
        was given before; otherwise they have a stream of their own and wait for nothing. Raises
        ValueError for caches whose words cannot be found this way.
        """
        names = sorted(
            {name for tensor in kv_cache_config.kv_cache_tensors for name in tensor.layers},
            key=_layer_order,
        )
        caches = [_as_words(name, kv_caches[name], kv_cache_config.num_blocks) for name in names]
        first = caches[0]
        if any((c.shape, c.stride(), c.device) != _form(first) for c in caches):
            raise _unsupported("its layers have KV caches of different shapes")
        storage = first.untyped_storage()
        if any(c.untyped_storage().data_ptr() != storage.data_ptr() for c in caches):
            raise _unsupported("its layers' KV caches are in several allocations")
        self.first_head = head
        self._words = torch.empty(0, dtype=torch.int32, device=first.device).set_(storage)
        self._device = first.device
        self._block_stride, self._head_stride, self._slot_stride = first.stride()[:3]
        num_heads, num_words = first.shape[1], first.shape[3]
        self.num_layers = len(caches)
        self._words_per_sample = max(num_words // NUM_SAMPLES, 1)
        self._layers = self._tensor([cache.storage_offset() for cache in caches])
        self._layer_numbers = self._tensor(range(len(caches)))
        self._heads = self._tensor(range(num_heads))
        self._salts = (self._heads + head + 1)[:, None] * _HEAD_SALT + self._tensor(
            [_SAMPLE_SALT * number for number in range(NUM_SAMPLES)]
        )
        starts = [min(i * self._words_per_sample, num_words - 1) for i in range(NUM_SAMPLES)]
        self._starts = self._tensor(starts)
        is_cuda = first.device.type == "cuda"
        self._stream = torch.cuda.Stream(first.device) if is_cuda and not in_stream else None

    def _tensor(self, numbers: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(numbers), dtype=torch.int64, device=self._device)

    def begin(self, job: SampleJob) -> Samples:
        """Queues a job; returns its values, which may be under way."""
        if self._device.type != "cuda":
            return Samples(self._values(_inputs(job, self._words_per_sample)))
        with torch.cuda.stream(self._stream or torch.cuda.current_stream(self._device)):
            pinned = [each.pin_memory() for each in _inputs(job, self._words_per_sample)]
            inputs = [each.to(self._device, non_blocking=True) for each in pinned]
            values = self._values(inputs)
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        return Samples(host, copied, (*pinned, *inputs, values))

    def _values(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Returns values of shape [blocks, layers], of some blocks at a time to bound the memory."""
        samples_per_block = self.num_layers * len(self._heads) * NUM_SAMPLES
        at_a_time = max(_MAX_SAMPLES // samples_per_block, 1)
        parts = zip(*(each.split(at_a_time) for each in inputs), strict=True)
        return torch.cat([self._some_values(*part) for part in parts])

    def _some_values(
        self,
        block_ids: torch.Tensor,
        slots: torch.Tensor,
        words: torch.Tensor,
        num_filled: torch.Tensor,
        keys: torch.Tensor,
    ) -> torch.Tensor:
        """Returns values of shape [blocks, layers]; see `_inputs` for the arguments."""
        layer = self._layer_numbers[None, :, None]
        slot = (slots[:, None, :] + layer) % num_filled[:, None, None]
        word = (words[:, None, :] + _WORDS_PER_LAYER * layer) % self._words_per_sample
        inside = slot * self._slot_stride + word + self._starts
        base = block_ids[:, None] * self._block_stride + self._layers[None, :]
        heads = self._heads[None, None, :, None] * self._head_stride
        # [blocks, layers, heads, samples]
        index = base[:, :, None, None] + inside[:, :, None, :] + heads
        sampled = self._words[index].to(torch.int64)
        salt = (keys[:, None, None] + self._salts[None]) & _LOW_31_BITS
        return _fold(sampled, salt[:, None]).to(torch.int32)


def _fold(sampled: torch.Tensor, salt: torch.Tensor) -> torch.Tensor:
    """Returns one 16-bit value for each block and layer; values of disjoint heads add up."""
    mixed = ((sampled & 0xFFFFFFFF) ^ salt) * _MIX_1
    mixed = ((mixed ^ (mixed >> 32)) & _LOW_31_BITS) * _MIX_2
    mixed = mixed ^ (mixed >> 32)
    return (mixed & 0xFFFF).sum(dim=(2, 3)) & 0xFFFF


def _inputs(job: SampleJob, words_per_sample: int) -> list[torch.Tensor]:
    """Returns block ids, slots, words, filled slots and keys as tensors, one row for each block."""
    where = places(job, words_per_sample)
    keys = (job.keys & np.uint64(_LOW_31_BITS)).astype(np.int64)
    arrays = (job.block_ids, where.slots, where.words, job.num_filled, keys)
    return [torch.from_numpy(np.ascontiguousarray(each)) for each in arrays]


def _as_words(name: str, cache: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Returns a view of the same bytes as words, [blocks, heads, tokens, words of a slot]."""
    if cache.dim() != 4 or cache.shape[0] != num_blocks:
        raise _unsupported(f"the KV cache of {name} has the shape {tuple(cache.shape)}")
    try:
        return cache.view(torch.int32)
    except RuntimeError as error:
        raise _unsupported(f"the KV cache of {name} has no whole words: {error}") from error


def _form(cache: torch.Tensor) -> tuple[Any, ...]:
    return cache.shape, cache.stride(), cache.device


def _layer_order(name: str) -> list[tuple[int, str]]:
    """Orders layer names by the numbers in them, as both sides of a transfer must."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _unsupported(why: str) -> ValueError:
    return ValueError(f"this model's KV cannot be digested: {why}; set handover.kv_digest: false")


@dataclass
class SampleMeta(KVConnectorWorkerMetadata):
    """The samples that a step brings from one rank, or from all together, by job."""

    parts: dict[str, list[Part]] = field(default_factory=dict)
    # Samples of this rank, perhaps under way; each with the rank's first head.
    begun: dict[str, tuple[int, Samples]] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> SampleMeta:
        """Adds another rank's samples of the same step."""
        assert isinstance(other, SampleMeta)
        mine, theirs = self.taken(), other.taken()
        for name, parts in theirs.items():
            mine.setdefault(name, []).extend(parts)
        return self

    def taken(self) -> dict[str, list[Part]]:
        """Returns all values; waits for those that are under way."""
        for name, (head, samples) in self.begun.items():
            self.parts.setdefault(name, []).append(Part(head, samples.rows))
        self.begun = {}
        return self.parts

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes only values travel. A step's output is sent when its tokens are
        # sampled, for which vLLM has waited for all that the device had to do before.
        return SampleMeta, (self.taken(),)


def find_samples(meta: Any) -> SampleMeta | None:
    """Returns the samples in a step's worker metadata, also in that of a MultiConnector."""
    parts = getattr(meta, "metadata", (meta,))
    return next((part for part in parts if isinstance(part, SampleMeta)), None)
