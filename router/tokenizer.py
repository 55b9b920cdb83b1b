"""Text to token ids: the model's tokenizer and chat template, from local files.

Documents, prefix and suffix are tokenized one by one, so equal text always
gives equal tokens. Goes to the Rust tokenizer directly: it has no mutable
state, so threads may share it (transformers' wrapper sets truncation on every
call and cannot be shared). Knows nothing of sessions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router.types import ChatMessage
from stream2llm.errors import InvalidRequestError, UnsupportedError
from stream2llm.prefix import Tokens, as_tokens

CHAT_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model directory says about its vocabulary."""

    # Of the model, not of the tokenizer: embeddings are often padded.
    vocab_size: int
    eos_token_ids: tuple[int, ...]


class ModelTokenizer:
    """One model's tokenizer. All methods are synchronous and thread-safe."""

    def __init__(self, model_path: str) -> None:
        self.files = read_model_files(Path(model_path))
        self._wrapper = _load(model_path)
        self.backend = self._wrapper.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self._bos = self._find_bos()
        # Of one token, in characters at most; byte-level tokens count their bytes.
        self.longest_token_chars = max(map(len, self.backend.get_vocab()), default=1)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._wrapper.chat_template)

    def encode(self, text: str) -> Tokens:
        """Text as it stands, nothing put around it."""
        # A batch of one: only encode_batch lets other threads run meanwhile.
        (encoding,) = self.backend.encode_batch([text], add_special_tokens=False)
        return as_tokens(encoding.ids)

    def encode_prefix(self, text: str) -> Tokens:
        """The beginning of a prompt: BOS first where this tokenizer puts one."""
        return np.concatenate([self._bos, self.encode(text)])

    @property
    def num_bos_tokens(self) -> int:
        """Tokens that `encode_prefix` puts before the text."""
        return len(self._bos)

    def check_ids(self, token_ids: Tokens, field: str) -> Tokens:
        """The same ids, if the model knows them all."""
        if len(token_ids) and (largest := int(token_ids.max())) >= self.files.vocab_size:
            raise InvalidRequestError(
                f"token id {largest} in {field} is not below the vocabulary size"
                f" {self.files.vocab_size}",
                reason="BAD_TOKEN_ID",
                field=field,
            )
        return token_ids

    def token_text(self, token_id: int) -> str:
        """One token by itself, special ones included."""
        return str(self.backend.decode([token_id], skip_special_tokens=False))

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as the model wants it, ready for its answer."""
        self.check_chat(messages)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(
                self._wrapper.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            )
        except Exception as error:  # templates raise what they like
            raise InvalidRequestError(
                f"the model's chat template refuses the messages: {error}",
                reason="BAD_CHAT",
                field="chat.messages",
            ) from error

    def check_chat(self, messages: Sequence[ChatMessage]) -> None:
        """Raises unless these can be messages for this model."""
        if not self.has_chat_template:
            raise UnsupportedError(
                "this model has no chat template; use a plain template",
                reason="NO_CHAT_TEMPLATE",
                field="chat",
            )
        if not messages:
            raise _bad_chat("chat.messages is empty", "chat.messages")
        for index, message in enumerate(messages):
            if message.role not in CHAT_ROLES:
                roles = ", ".join(CHAT_ROLES)
                field = f"chat.messages[{index}].role"
                raise _bad_chat(f"{field} is {message.role!r}; it must be one of {roles}", field)

    def _find_bos(self) -> Tokens:
        bos_id = self._wrapper.bos_token_id
        added = self.backend.encode("", add_special_tokens=True).ids
        return as_tokens([bos_id] if bos_id is not None and added[:1] == [bos_id] else [])


def split_chat(
    tokenizer: ModelTokenizer, messages: Sequence[ChatMessage], slot: str
) -> tuple[str, str]:
    """What the template writes before and behind the one context slot."""
    tokenizer.check_chat(messages)
    _check_one_slot(messages, slot)
    marker = _unused_marker(messages)
    marked = [ChatMessage(m.role, m.content.replace(slot, marker)) for m in messages]
    parts = tokenizer.render_chat(marked).split(marker)
    if len(parts) != 2:
        raise _bad_chat(
            f"the model's chat template shows the context slot {len(parts) - 1} times, not once",
            "chat.messages",
        )
    return parts[0], parts[1]


def _check_one_slot(messages: Sequence[ChatMessage], slot: str) -> None:
    count = sum(message.content.count(slot) for message in messages)
    if count != 1:
        raise _bad_chat(
            f"the context slot {slot!r} appears {count} times in chat.messages;"
            " it must appear exactly once",
            "chat.messages",
        )


def _unused_marker(messages: Sequence[ChatMessage]) -> str:
    # Letters and digits survive every filter that a template may apply.
    number = 0
    while any(f"s2lslot{number}x" in message.content for message in messages):
        number += 1
    return f"s2lslot{number}x"


def _bad_chat(message: str, field: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_CHAT", field=field)


def read_model_files(path: Path) -> ModelFiles:
    """Reads config.json and generation_config.json; fails naming file and key."""
    config = _read_json(path / "config.json")
    text_config = config.get("text_config") or config
    vocab_size = text_config.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise InvalidRequestError(f"{path / 'config.json'}: vocab_size is missing")
    generation_path = path / "generation_config.json"
    generation = _read_json(generation_path) if generation_path.exists() else {}
    eos = _as_list(text_config.get("eos_token_id")) + _as_list(generation.get("eos_token_id"))
    return ModelFiles(vocab_size, tuple(dict.fromkeys(eos)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InvalidRequestError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidRequestError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequestError(f"{path}: not a JSON object")
    return content


def _as_list(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [int(value)]


def _load(model_path: str) -> Any:
    from transformers import AutoTokenizer  # here: importing it takes seconds

    try:
        wrapper = AutoTokenizer.from_pretrained(model_path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{model_path}: no tokenizer: {error}") from error
    if getattr(wrapper, "backend_tokenizer", None) is None:
        raise InvalidRequestError(
            f"{model_path}: needs a fast tokenizer (tokenizer.json), has {type(wrapper).__name__}"
        )
    return wrapper
