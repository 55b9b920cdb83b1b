"""Conversations are rendered whole with each request, but only what is new is encoded."""

from __future__ import annotations

from pathlib import Path

from router.arrangement import Arrangement
from router.text_input import TextInput
from router.tokenizer import ModelTokenizer
from stream2llm.api.options import ControlTokens
from stream2llm.api.requests import ChatMessage, ChatPrompt
from stream2llm.gateway.lanes.conversation import Conversation
from stream2llm.gateway.lanes.rendering import RememberingEncoder, Rendering


async def test_only_new_turns_are_encoded(tiny_model: Path) -> None:
    tokenizer = ModelTokenizer(str(tiny_model))
    plain = tokenizer.encoder
    tokenizer.encoder = encoder = RememberingEncoder(plain)
    text = TextInput(tokenizer, 1000)
    turns: tuple[ChatMessage, ...] = ()
    num_encoded = []
    for word in ("hello", "there", "world"):
        turns = (*turns, ChatMessage("user", word))
        rendered = await Rendering(text).rendered(
            Conversation(turns), ChatPrompt(()), Arrangement(), begins_answer=False
        )
        num_encoded.append(encoder.remembered.cache_info().misses)
        prompt = ChatPrompt(turns, add_generation_prompt=False)
        written = tokenizer.chat.prompt(prompt, ControlTokens.NONE)
        whole = plain.encode(plain.parts_written(written, is_first=True))
        assert rendered.parts[0].tolist() == whole.tolist()
    first, second, third = num_encoded
    assert second - first == third - second < first
    text.close()
