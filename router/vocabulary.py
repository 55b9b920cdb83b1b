"""Tokenizers of the same vocabulary without control tokens. Pure, but for the library.

An added token (`<|im_end|>`, `<tool_call>`, `<s>`) matches wherever its text occurs, so a
model's tokenizer lets any text write control tokens. `plain_tokenizers` makes others from
the same files in which an added token is ordinary text, even if the model's own vocabulary
has it. Added tokens of white space only are text, not control tokens.

Tokenizers of the SentencePiece kind put a word mark in front of each text. That is right
once, at the beginning of a prompt; any other text continues a previous one.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from router.detokenizer import byte_alphabet

_WORD_MARK = "\u2581"


def control_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the ids of the added tokens that only a template may write."""
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(i for i, token in added.items() if not _is_text(token.content, token.special))


@dataclass(frozen=True, slots=True)
class PlainTokenizers:
    """Encode every text without control tokens and with nothing around it.

    A character without a token still becomes the unknown token.
    """

    # For a text at the beginning of a prompt, and for one inside it.
    first: Tokenizer
    inside: Tokenizer
    # Maximum bytes of text per token; None where a normalizer may shorten the text, or an
    # unknown token may stand for any number of characters.
    max_token_bytes: int | None


def plain_tokenizers(tokenizer: Tokenizer) -> PlainTokenizers:
    """Raises Exception when the library cannot build them."""
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    added = spec["added_tokens"]
    spec["added_tokens"] = [each for each in added if _is_text(each["content"], each["special"])]
    spec.update(post_processor=None, truncation=None, padding=None)
    max_token_bytes = _max_token_bytes(spec)
    _hide(spec["model"], control_ids(tokenizer))
    ends = [
        (_without_strip(spec["normalizer"], word_mark=True), spec["pre_tokenizer"]),
        (_without_strip(spec["normalizer"], word_mark=False), _without_mark(spec["pre_tokenizer"])),
    ]
    inside = _built(spec, *ends[1])  # a large vocabulary takes a second
    first = inside if ends[0] == ends[1] else _built(spec, *ends[0])
    return PlainTokenizers(first, inside, max_token_bytes)


def _built(spec: dict[str, Any], normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    whole = {**spec, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    return Tokenizer.from_str(json.dumps(whole))


def _max_token_bytes(spec: dict[str, Any]) -> int | None:
    kind = (spec["pre_tokenizer"] or {}).get("type")
    if kind != "ByteLevel" or spec["normalizer"] or spec["added_tokens"]:
        return None
    vocab = spec["model"]["vocab"]
    return max(map(len, vocab)) if vocab.keys() >= set(byte_alphabet()) else None


def _is_text(content: str, special: bool) -> bool:
    """Runs of white space (Gemma, GPT-NeoX) are how these models write white space."""
    return not special and not content.replace(_WORD_MARK, " ").strip()


def _hide(model: dict[str, Any], hidden_ids: frozenset[int]) -> None:
    """Renames the tokens with these ids so that no text has them: the ids stay as they are."""
    # Unguessable: a model that looks up whole words would find a fixed name in a text.
    secret = uuid.uuid4().hex
    vocab = model["vocab"]
    if isinstance(vocab, list):  # unigram: the index is the id
        for token_id in hidden_ids & set(range(len(vocab))):
            vocab[token_id][0] = f"{secret}{token_id}"
        return
    names = {name: f"{secret}{i}" for name, i in vocab.items() if i in hidden_ids}
    model["vocab"] = {names.get(name, name): i for name, i in vocab.items()}
    model["unk_token"] = names.get(model.get("unk_token"), model.get("unk_token"))
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [pair for pair in model["merges"] if not _makes(pair, names, prefix)]


def _makes(merge: list[str] | str, names: dict[str, str], prefix: str) -> bool:
    """Whether a merge makes one of these tokens, or begins with one."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return not names.keys().isdisjoint({left, right, left + right.removeprefix(prefix)})


def _without_strip(normalizer: Any, word_mark: bool) -> Any:
    """Removes stripping, except before a prompt, and the word mark unless `word_mark`."""
    kind = normalizer and normalizer["type"]
    if kind == "Sequence":
        parts = [_without_strip(part, word_mark) for part in normalizer["normalizers"]]
        return {**normalizer, "normalizers": [part for part in parts if part]}
    if kind == "Strip":
        return {**normalizer, "strip_right": False} if word_mark else None
    return None if kind == "Prepend" and not word_mark else normalizer


def _without_mark(pre_tokenizer: Any) -> Any:
    kind = pre_tokenizer and pre_tokenizer["type"]
    if kind == "Sequence":
        parts = [_without_mark(part) for part in pre_tokenizer["pretokenizers"]]
        return {**pre_tokenizer, "pretokenizers": parts}
    if kind == "Metaspace":
        return {**pre_tokenizer, "prepend_scheme": "never"}
    return {**pre_tokenizer, "add_prefix_space": False} if kind == "ByteLevel" else pre_tokenizer
