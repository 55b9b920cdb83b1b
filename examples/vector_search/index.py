"""The index: IVF of faiss, searched with ever more probes. Kept in the cache of models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from examples.vector_search.corpus import Text, read_corpus, sources
from examples.vector_search.embedding import Embedder, EncodeBatch, Vectors, fitted, of_model
from stream2llm.models.cache import default_cache_dir
from stream2llm.models.store import resolve_model

Say = Callable[[str], None]
# Raised when texts or vectors are made in another way.
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Index:
    """Texts, their vectors in faiss, and what makes a vector of a question."""

    texts: tuple[Text, ...]
    vectors: Vectors
    ivf: Any
    embedder: Embedder

    @property
    def num_lists(self) -> int:
        """Cells that the texts are divided into."""
        return int(self.ivf.nlist)

    def probes(self) -> tuple[int, ...]:
        """Returns the number of cells that each refinement probes: it doubles, up to half of all."""
        return tuple(2**n for n in range(max(self.num_lists // 2, 1).bit_length()))

    def search(self, question: Vectors, num_probes: int, count: int) -> list[int]:
        """The nearest texts in the nearest cells, best first."""
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = num_probes
        _, found = self.ivf.search(question, count, params=parameters)
        return [int(number) for number in found[0] if number >= 0]

    def exact(self, question: Vectors, count: int) -> list[int]:
        """The nearest of all texts."""
        scores = self.vectors @ question[0]
        return [int(number) for number in np.argsort(-scores, kind="stable")[:count]]


def recall(found: Sequence[int], wanted: Sequence[int]) -> float:
    """Share of the wanted ones among those that were found."""
    return len({*found} & {*wanted}) / len(wanted)


def build(texts: tuple[Text, ...], encode: EncodeBatch, table: Vectors) -> Index:
    """An index of so many texts that a cell has about as many as there are cells."""
    embedder = fitted(encode, table, [text.content for text in texts])
    vectors = embedder.vectors([text.content for text in texts])
    num_lists = max(1, round(len(texts) ** 0.5 / 2))
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    ivf = faiss.IndexIVFFlat(quantizer, vectors.shape[1], num_lists, faiss.METRIC_INNER_PRODUCT)
    ivf.cp.seed = 1  # k-means: equal texts make equal cells
    ivf.train(vectors)
    ivf.add(vectors)
    return Index(texts, vectors, ivf, embedder)


def open_index(model: str, count: int, say: Say, cache: Path | None = None) -> Index:
    """That of the cache, or a new one, which takes less than a minute on a quiet machine."""
    model_path = resolve_model(model)
    encode, table = of_model(model_path)
    key = hashlib.sha256(f"{_FORMAT} {model_path} {sources()}".encode()).hexdigest()[:12]
    folder = (cache or default_cache_dir()) / "examples"
    stem = folder / f"vector-search-{count}-{key}"
    if stem.with_suffix(".faiss").is_file():
        return _read(stem, encode, table)
    say(f"reading {count:,} docstrings and making vectors of them (once, under a minute)")
    index = build(read_corpus(count), encode, table)
    folder.mkdir(parents=True, exist_ok=True)
    _write(index, stem)
    return index


def _write(index: Index, stem: Path) -> None:
    lines = (f"{json.dumps(asdict(text))}\n" for text in index.texts)
    stem.with_suffix(".jsonl").write_text("".join(lines))
    embedder = index.embedder
    np.savez(
        stem.with_suffix(".npz"),
        vectors=index.vectors,
        weights=embedder.weights,
        mean=embedder.mean,
    )
    # Last, and by its name only when it is whole.
    part = stem.with_suffix(".part")
    faiss.write_index(index.ivf, str(part))
    part.replace(stem.with_suffix(".faiss"))


def _read(stem: Path, encode: EncodeBatch, table: Vectors) -> Index:
    with np.load(stem.with_suffix(".npz")) as kept:
        embedder = Embedder(encode, table, kept["weights"], kept["mean"])
        vectors = kept["vectors"]
    texts = tuple(_read_texts(stem.with_suffix(".jsonl")))
    return Index(texts, vectors, faiss.read_index(str(stem.with_suffix(".faiss"))), embedder)


def _read_texts(path: Path) -> Iterator[Text]:
    with path.open() as file:
        for line in file:
            yield Text(**json.loads(line))
