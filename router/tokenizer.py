"""Text to token ids: the model's tokenizer and chat template, from local files.

Documents, prefix and suffix are tokenized separately, so equal text always gives equal
tokens. Uses the Rust tokenizer directly: it is immutable, so threads may share it
(transformers' wrapper sets truncation on every call and cannot be shared). Independent
of sessions.
Tokenizers that are written in Python, SentencePiece's own and mistral-common's among
them, are refused at the start: they cannot encode text without control tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from router.chat_template import ChatRenderer, TemplateText
from router.encoder import Part, TextEncoder
from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.requests import ChatMessage, TokenIds
from stream2llm.serving.prefix import Tokens, as_tokens

_logger = logging.getLogger(__name__)
CHAT_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Vocabulary data in a model directory."""

    # The model's, not the tokenizer's: embeddings are often padded.
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
        self.encoder = TextEncoder(self.backend, model_path)
        self._chat = self._chat_renderer(model_path)

    @property
    def has_chat_template(self) -> bool:
        return self._chat is not None

    def parts(
        self, text: str, *, is_first: bool = False, with_control_tokens: bool = False
    ) -> list[Part]:
        """Splits text into parts; at the beginning of a prompt, BOS comes first, once, if any."""
        encoder = self.encoder
        if with_control_tokens:
            parts = encoder.parts_written(TemplateText.written(text), is_first=is_first)
        else:
            parts = encoder.parts(text, is_first=is_first)
        head: list[Part] = encoder.head.tolist() if is_first else []
        return parts if parts[: len(head)] == head else [*head, *parts]

    def encode(self, text: str) -> Tokens:
        """Encodes text inside a prompt, with nothing around it."""
        return self.encoder.encode(self.encoder.parts(text))

    @property
    def num_bos_tokens(self) -> int:
        """Number of tokens before the text at the beginning of a prompt."""
        return len(self.encoder.head)

    def check_ids(self, token_ids: TokenIds, field: str) -> Tokens:
        """The same ids as an array, if the model knows them all."""
        ids = as_tokens(cast("Sequence[int]", token_ids))
        if len(ids) and (largest := int(ids.max())) >= self.files.vocab_size:
            raise InvalidRequestError(
                f"token id {largest} in {field} is not below the vocabulary size"
                f" {self.files.vocab_size}",
                reason="BAD_TOKEN_ID",
                field=field,
            )
        return ids

    def token_text(self, token_id: int) -> str:
        """Returns the text of one token by itself, special ones included."""
        return str(self.backend.decode([token_id], skip_special_tokens=False))

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        with_control_tokens: bool = False,
        add_generation_prompt: bool = True,
    ) -> TemplateText:
        """Renders a conversation, by default up to the beginning of the model's answer.

        With control tokens, contents may write them too, but roles may not.
        """
        self.check_chat(messages)
        assert self._chat is not None, "check_chat raises without a template"
        kind = TemplateText.written if with_control_tokens else str
        turns = [{"role": each.role, "content": kind(each.content)} for each in messages]
        try:
            return self._chat.render(turns, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # templates may raise anything
            raise InvalidRequestError(
                f"the model's chat template refuses the messages: {error}",
                reason="BAD_CHAT",
                field="chat.messages",
            ) from error

    def check_chat(self, messages: Sequence[ChatMessage]) -> None:
        """Raises InvalidRequestError unless the model accepts these messages."""
        if not self.has_chat_template:
            raise UnsupportedError(
                "this model has no chat template, or one that the router cannot use (its log says"
                " so); use a plain template",
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

    def _chat_renderer(self, model_path: str) -> ChatRenderer | None:
        """Returns None without a template, and if its control tokens are ambiguous."""
        if not self._wrapper.chat_template:
            return None
        chat = ChatRenderer(self._wrapper.get_chat_template(), self._wrapper.special_tokens_map)
        if self._writes_what_transformers_writes(chat):
            return chat
        _logger.error(
            "chat_template_not_usable model=%r why=%r",
            model_path,
            "the control tokens that it writes cannot be distinguished from those in the messages",
        )
        return None

    def _writes_what_transformers_writes(self, chat: ChatRenderer) -> bool:
        """Whether a conversation has the same control tokens here as in transformers."""
        turns = [{"role": role, "content": "text"} for role in ("user", "assistant", "user")]
        try:
            whole = self._wrapper.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            rendered = chat.render(turns)
        except Exception:  # it does not take this conversation: others are checked when sent
            return True
        expected = self.backend.encode(whole, add_special_tokens=False).ids
        found = self.encoder.parts_written(rendered, is_first=True)
        control = self.encoder.control_ids
        return [i for i in found if isinstance(i, int)] == [i for i in expected if i in control]


def split_chat(
    tokenizer: ModelTokenizer,
    messages: Sequence[ChatMessage],
    slot: str,
    *,
    with_control_tokens: bool = False,
    add_generation_prompt: bool = True,
) -> tuple[TemplateText, TemplateText]:
    """Splits the rendered text at the one context slot."""
    tokenizer.check_chat(messages)
    _check_one_slot(messages, slot)
    marker = _unused_marker(messages)
    marked = [ChatMessage(m.role, m.content.replace(slot, marker)) for m in messages]
    rendered = tokenizer.render_chat(
        marked,
        with_control_tokens=with_control_tokens,
        add_generation_prompt=add_generation_prompt,
    )
    parts = rendered.split(marker)
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
            f"{model_path}: needs a tokenizer of the tokenizers library (tokenizer.json), has"
            f" {type(wrapper).__name__}"
        )
    return wrapper
