"""Vectors of texts: the mean of the model's input embeddings, rare tokens first. No forward pass.

After "A simple but tough-to-beat baseline for sentence embeddings" (Arora et al., 2017): tokens
are weighted by a / (a + their share of all tokens), and the common direction is taken out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
EncodeBatch = Callable[[Sequence[str]], list[list[int]]]
_RARITY = 1e-3
MAX_TOKENS = 160
_TENSOR = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Embedder:
    """Makes vectors of length one."""

    encode: EncodeBatch
    # A row for each token id.
    table: Vectors
    # Weight of each token id.
    weights: Vectors
    # What all texts have in common.
    mean: Vectors

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """A row for each text."""
        raw = _weighted(self.encode(texts), self.table, self.weights) - self.mean
        return _of_length_one(raw)


def fitted(encode: EncodeBatch, table: Vectors, texts: Sequence[str]) -> Embedder:
    """An embedder whose weights and common direction are those of the texts."""
    ids = encode(texts)
    counts = np.bincount(np.concatenate([np.asarray(each) for each in ids]), minlength=len(table))
    weights = (_RARITY / (_RARITY + counts / counts.sum())).astype(np.float32)
    mean = _weighted(ids, table, weights).mean(axis=0)
    return Embedder(encode, table, weights, mean)


def _weighted(ids: Sequence[Sequence[int]], table: Vectors, weights: Vectors) -> Vectors:
    rows = np.zeros((len(ids), table.shape[1]), dtype=np.float32)
    for row, each in enumerate(ids):
        if each:
            rows[row] = weights[each] @ table[each] / len(each)
    return rows


def _of_length_one(rows: Vectors) -> Vectors:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), dtype=np.float32)


def of_model(model_path: Path) -> tuple[EncodeBatch, Vectors]:
    """Tokenizer and input embeddings of a model with one safetensors file in bfloat16."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_path / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [each.ids for each in encoded]

    return encode, _input_embeddings(model_path / "model.safetensors")


def _input_embeddings(path: Path) -> Vectors:
    """Read without torch: numpy has no bfloat16, which is the upper half of a float32."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(header_bytes))[_TENSOR]
    if entry["dtype"] != "BF16":
        raise ValueError(f"{path}: {_TENSOR} is {entry['dtype']}, not BF16")
    rows, columns = entry["shape"]
    offset = 8 + header_bytes + entry["data_offsets"][0]
    halves = np.fromfile(path, dtype="<u2", count=rows * columns, offset=offset)
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(rows, columns)
