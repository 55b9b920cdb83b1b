"""Counts tokens with a model's own tokenizer, without torch or transformers."""

from __future__ import annotations

from collections.abc import Callable

from stream2llm.models.store import resolve_model


def token_counter(model: str) -> Callable[[str], int]:
    """Returns a function that counts a text's tokens; `model` is a preset's name or a path.

    Raises ModelStoreError when the model is not on this machine.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(resolve_model(model) / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
