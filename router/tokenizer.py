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
from router.conversation import Tool, Turn, turns_of
from router.encoder import Part, TextEncoder
from router.model_chat import ModelChat, ProbedTemplate
from router.template_probe import PLAIN_CONVERSATION, TOOL, TOOL_CONVERSATION
from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.options import ControlTokens
from stream2llm.api.requests import ChatMessage, TokenIds
from stream2llm.serving.sessions.prefix import Tokens, as_tokens

_logger = logging.getLogger(__name__)


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
        self._chat = self._model_chat(model_path)

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

    @property
    def chat(self) -> ModelChat:
        """The model's chat; raises UnsupportedError without one."""
        if self._chat is None:
            raise UnsupportedError(
                "this model has no chat template, or one that the router cannot use (its log says"
                " so); use a plain template",
                reason="NO_CHAT_TEMPLATE",
                field="chat",
            )
        return self._chat

    def _model_chat(self, model_path: str) -> ModelChat | None:
        """Returns None without a template, and if its control tokens are ambiguous."""
        if not self._wrapper.chat_template:
            return None
        plain = self._template(model_path, PLAIN_CONVERSATION)
        if plain is None:
            return None
        return ModelChat(plain, self._template(model_path, TOOL_CONVERSATION, [TOOL]))

    def _template(
        self, model_path: str, messages: Sequence[ChatMessage], tools: list[Tool] | None = None
    ) -> ProbedTemplate | None:
        """Returns the template for conversations such as this one; None if it is ambiguous."""
        template = self._wrapper.get_chat_template(tools=tools)
        renderer = ChatRenderer(template, self._wrapper.special_tokens_map)
        probed = ProbedTemplate.of(renderer)
        turns = turns_of(messages, probed.abilities.form, ControlTokens.NONE)
        if self._writes_what_transformers_writes(renderer, turns, tools):
            return probed
        _logger.error(
            "chat_template_not_usable model=%r with_tools=%s why=%r",
            model_path,
            tools is not None,
            "the control tokens that it writes cannot be distinguished from those in the messages",
        )
        return None

    def _writes_what_transformers_writes(
        self, renderer: ChatRenderer, turns: list[Turn], tools: list[Tool] | None
    ) -> bool:
        """Whether the conversation has the same control tokens here as in transformers."""
        try:
            whole = self._wrapper.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=True
            )
            rendered = renderer.render(turns, tools=tools)
        except Exception:  # it does not take this conversation: others are checked when sent
            return True
        expected = self.backend.encode(whole, add_special_tokens=False).ids
        found = self.encoder.parts_written(rendered, is_first=True)
        control = self.encoder.control_ids
        return [i for i in found if isinstance(i, int)] == [i for i in expected if i in control]


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
