"""The tokenizer of all runs, and the text that tokens have by it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from router.tokenizer import ModelTokenizer
from tests.tiny_model import make_tiny_model


@cache
def tiny_tokenizer() -> ModelTokenizer:
    """The tokenizer that all runs share."""
    with TemporaryDirectory() as folder:
        return ModelTokenizer(str(make_tiny_model(Path(folder) / "model")))


def text_of(token_ids: Sequence[int]) -> str:
    """The text of these tokens at once, without that of special ones."""
    return str(tiny_tokenizer().backend.decode(list(token_ids), skip_special_tokens=True))
