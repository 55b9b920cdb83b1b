"""Reads a model's directory without loading it: are the weights whole, what is its shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast, get_args

from cost_profiles.roofline import TransformerShape
from cost_profiles.types import DType, ModelGeometry

_INDEX = "model.safetensors.index.json"
# safetensors: eight bytes with the length of a JSON header, the header, the tensors.
_LENGTH_BYTES = 8


def incomplete_files(path: Path) -> tuple[tuple[str, ...], int]:
    """Returns the names of missing or cut weight files, and how many there should be."""
    index = path / _INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = sorted(each.name for each in path.glob("*.safetensors"))
    return tuple(name for name in names if not _is_whole(path / name)), len(names)


def _is_whole(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            if length > file.stat().st_size:
                return False
            header = json.loads(opened.read(length))
    except ValueError:
        return False
    ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
    return file.stat().st_size >= _LENGTH_BYTES + length + max(ends, default=0)


def shape_of(path: Path) -> TransformerShape | None:
    """Returns what costs depend on; None for a config.json that does not say it plainly."""
    raw = json.loads((path / "config.json").read_text())
    text = raw.get("text_config") or raw
    try:
        return _shape(path.name, text, _dtype_of(text) or _dtype_of(raw))
    except (KeyError, TypeError, ValueError):
        return None


def _shape(name: str, text: dict[str, Any], dtype: str) -> TransformerShape:
    if dtype not in get_args(DType):
        raise ValueError(f"no such type: {dtype!r}")
    heads = int(text["num_attention_heads"])
    geometry = ModelGeometry(
        name=name,
        num_layers=int(text["num_hidden_layers"]),
        num_kv_heads=int(text.get("num_key_value_heads") or heads),
        head_size=int(text.get("head_dim") or text["hidden_size"] // heads),
        dtype=cast("DType", dtype),
    )
    return TransformerShape(
        geometry, int(text["hidden_size"]), int(text["intermediate_size"]), heads
    )


def _dtype_of(raw: dict[str, Any]) -> str:
    return str(raw.get("dtype") or raw.get("torch_dtype") or "").removeprefix("torch.")
