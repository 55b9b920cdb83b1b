"""Finds the bytes of a KV block: vLLM's placement of layers, as views to copy blocks by.

vLLM 0.32 allocates the whole KV cache at once and describes where each layer's
page of a block lies (`KVCacheTensor`). Its six physical layouts reduce to two cases:
either a layer has its own pieces, each of which holds one part of every block, one
block after the other; or a block is one piece that holds all layers. Layers of
different cache groups may share bytes: a part is copied once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheTensor


class Region(NamedTuple):
    """`num_parts` parts of every block: bytes of shape [num_parts, num_blocks, part_bytes]."""

    # Bytes from the start of the allocation.
    start: int
    num_parts: int
    part_bytes: int


def find_regions(config: KVCacheConfig) -> list[Region]:
    """Returns the regions of all parts of all blocks, each byte once, by address.

    Raises ValueError for a placement that does not reduce to such regions.
    """
    parts: set[tuple[int, int]] = set()
    for tensor in config.kv_cache_tensors:
        if tensor.host_resident:
            raise ValueError("KV caches that live on the host cannot be swapped")
        parts.update(_parts_of(tensor, config.num_blocks))
    return _join(sorted(parts), config.num_blocks)


def block_bytes(regions: Iterable[Region]) -> int:
    """Returns the bytes of one block over all layers, on one rank."""
    return sum(region.num_parts * region.part_bytes for region in regions)


def block_views(config: KVCacheConfig, kv_caches: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Returns a view per region of `find_regions`, [num_blocks, num_parts, words of a part].

    The views share the memory of `kv_caches` (layer name to tensor); their words have
    8 bytes if the placement allows it and 1 byte otherwise. Raises ValueError when
    the caches are not where `config` says.
    """
    regions = find_regions(config)
    if not regions:
        return []
    raw = _allocation(config, kv_caches)
    is_wide = all(number % 8 == 0 for r in regions for number in (r.start, r.part_bytes))
    dtype = torch.int64 if is_wide else torch.int8
    views = []
    for region in regions:
        num_bytes = region.num_parts * config.num_blocks * region.part_bytes
        words = raw[region.start : region.start + num_bytes].view(dtype)
        parts = words.view(region.num_parts, config.num_blocks, -1)
        views.append(parts.transpose(0, 1))
    return views


def _parts_of(tensor: KVCacheTensor, num_blocks: int) -> list[tuple[int, int]]:
    """Returns (start, bytes) of each piece that holds one part of every block."""
    span = num_blocks * tensor.block_stride
    if tensor.layer_stride < span:
        # Block by block; a block holds all layers, also those of other groups.
        return [(0, tensor.block_stride)]
    # Layer by layer; a layer may have several pieces, one per KV head.
    num_pieces, rest = divmod(tensor.layer_stride, span)
    if rest:
        raise ValueError(
            f"a layer of {tensor.layer_stride} bytes is no whole number of pieces of {span} bytes"
        )
    count = num_pieces * len(tensor.layers)
    return [(tensor.offset + i * span, tensor.block_stride) for i in range(count)]


def _join(parts: list[tuple[int, int]], num_blocks: int) -> list[Region]:
    """Joins neighbours of equal size into regions; raises ValueError for parts that overlap."""
    regions: list[Region] = []
    end = 0
    for start, part_bytes in parts:
        if start < end:
            raise ValueError(f"pieces of different shapes share the bytes at {start}")
        last = regions[-1] if regions else None
        if last is not None and start == end and part_bytes == last.part_bytes:
            regions[-1] = last._replace(num_parts=last.num_parts + 1)
        else:
            regions.append(Region(start, 1, part_bytes))
        end = start + num_blocks * part_bytes
    return regions


def _allocation(config: KVCacheConfig, kv_caches: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the bytes that hold all caches; raises ValueError unless they lie as described."""
    missing = sorted(
        {name for tensor in config.kv_cache_tensors for name in tensor.layers} - kv_caches.keys()
    )
    if missing:
        raise ValueError(f"no KV cache was given for the layers {', '.join(missing)}")
    first = kv_caches[config.kv_cache_tensors[0].layers[0]]
    storage = first.untyped_storage()
    num_bytes = max(tensor.size for tensor in config.kv_cache_tensors)
    if storage.nbytes() < num_bytes:
        raise ValueError(f"the KV caches have {storage.nbytes()} bytes, not {num_bytes}")
    for tensor in config.kv_cache_tensors:
        for number, name in enumerate(tensor.layers):
            offset = tensor.offset + number * tensor.layer_stride
            _require_place(name, kv_caches[name], storage.data_ptr(), offset)
    return torch.empty(0, dtype=torch.int8, device=first.device).set_(storage)


def _require_place(name: str, cache: torch.Tensor, base: int, offset: int) -> None:
    # A layer without a shape of its own gets the flat allocation itself.
    expected = base if cache.dim() == 1 else base + offset
    if cache.data_ptr() != expected:
        raise ValueError(
            f"the KV cache of {name} lies {cache.data_ptr() - base} bytes into the allocation,"
            f" its description says {offset}"
        )
