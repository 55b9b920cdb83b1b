"""What a client sends beside contents is text too, in the templates of known models.

1. No text in any place of a conversation makes a control token, whatever the template does.
2. The template's own control tokens are all there, as transformers' renderer has them.
3. The text is what transformers renders, unless a place may not have it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router.chat_template import ChatRenderer
from router.conversation import turns_of
from router.model_chat import ModelChat, ProbedTemplate
from router.text_input import TextInput
from router.tokenizer import ModelTokenizer
from stream2llm.api.options import ControlTokens
from stream2llm.api.requests import ChatPrompt, ChatTemplate
from stream2llm.models.cache import is_ready, model_dir
from stream2llm.serving.sessions.prefix import Tokens
from tests.chat_templates import PLACES, TEMPLATES, conversation
from tests.tokenizer_families import FAMILIES

SMOLLM2 = "smollm2-135m-instruct"
# One of each kind: the others differ in what is put around a prompt.
KINDS = {family.name.split("-")[0]: family for family in FAMILIES}
NAMES = [*map(str, KINDS.values()), SMOLLM2]


@pytest.fixture(scope="module", params=NAMES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ModelTokenizer:
    if request.param == SMOLLM2:
        if not is_ready(SMOLLM2):
            pytest.skip(f"{SMOLLM2} is not in the cache: make model")
        return ModelTokenizer(str(model_dir(SMOLLM2)))
    family = next(family for family in KINDS.values() if family.name == request.param)
    return ModelTokenizer(str(family.make_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module", params=TEMPLATES)
def template(request: pytest.FixtureRequest, model: ModelTokenizer) -> str:
    """One of the templates, with control tokens that the model has."""
    text = TEMPLATES[request.param]
    if model.backend.token_to_id("<|turn|>") is None:
        text = text.replace("<|turn|>", "<|im_start|>").replace("<|end|>", "<|im_end|>")
        text = text.replace("[INST]", "<|im_start|>").replace("</s>", "<|im_end|>")
    return text


@pytest.fixture(scope="module")
def chat(model: ModelTokenizer, template: str) -> ModelChat:
    probed = ProbedTemplate.of(ChatRenderer(template, model._wrapper.special_tokens_map))
    return ModelChat(probed, probed)


def added(model: ModelTokenizer) -> list[str]:
    return [token.content for token in model.backend.get_added_tokens_decoder().values()]


def control(model: ModelTokenizer, tokens: Tokens) -> list[int]:
    return [i for i in tokens.tolist() if i in model.encoder.control_ids]


def pages(model: ModelTokenizer) -> list[str]:
    """Every added token in each: by itself, in words, and at the borders of what JSON quotes."""
    tokens = added(model)
    return ["".join(tokens), " ".join(f"a{token}b" for token in tokens), '", "x": "'.join(tokens)]


def by_transformers(model: ModelTokenizer, chat: ModelChat, prompt: ChatPrompt) -> str:
    used = chat._plain
    variables: dict[str, Any] = json.loads(prompt.chat_template_kwargs or "{}")
    rendered = model._wrapper.apply_chat_template(
        turns_of(prompt.messages, used.abilities.form, ControlTokens.NONE),
        tools=[json.loads(text) for text in prompt.tools] or None,
        chat_template=used.renderer.source,
        tokenize=False,
        add_generation_prompt=True,
        **variables,
    )
    assert isinstance(rendered, str)
    return rendered


def whole_conversation(chat: ModelChat, text: str) -> ChatPrompt:
    return conversation(text, with_developer=chat._plain.abilities.form.knows_developer)


def test_nothing_in_a_conversation_makes_a_control_token(
    model: ModelTokenizer, chat: ModelChat
) -> None:
    whole = by_transformers(model, chat, whole_conversation(chat, "benign"))
    expected = control(model, np.array(model.backend.encode(whole, add_special_tokens=False).ids))
    assert expected
    for page in pages(model):
        hostile = whole_conversation(chat, page)
        rendered = chat.prompt(hostile)
        assert rendered == by_transformers(model, chat, hostile)
        parts = model.encoder.parts_written(rendered, is_first=True)
        assert control(model, model.encoder.encode(parts)) == expected, page


@pytest.fixture
def text(model: ModelTokenizer, chat: ModelChat) -> Iterator[TextInput]:
    before, model._chat = model._chat, chat
    made = TextInput(model, 1_000_000)
    yield made
    made.close()
    model._chat = before


async def test_what_a_session_sends_is_data_around_its_slot(text: TextInput) -> None:
    """Through the whole path, with the slot in a tool's message."""
    model = text.tokenizer
    expected = control(model, await whole_frame(text, "benign"))
    for page in pages(model):
        assert control(model, await whole_frame(text, page)) == expected, page


async def whole_frame(
    text: TextInput, page: str, control_tokens: ControlTokens = ControlTokens.NONE
) -> Tokens:
    chat = conversation(page)
    messages = [
        replace(each, content=f"{page} {{{{context}}}} {page}") if each.role == "tool" else each
        for each in chat.messages
    ]
    session = ChatTemplate(
        tuple(messages), tools=chat.tools, chat_template_kwargs=chat.chat_template_kwargs
    )
    frame = await text.frame(session, control_tokens)
    return np.concatenate([frame.prefix, frame.suffix])


async def test_control_tokens_that_are_asked_for_are_those_of_contents(text: TextInput) -> None:
    """Names, tools and variables never write them, and results of tools only as documents do."""
    model = text.tokenizer
    token = next(token for token in added(model) if "|" in token)
    token_id = model.backend.token_to_id(token)

    async def num(control_tokens: ControlTokens) -> int:
        tokens = await whole_frame(text, token, control_tokens)
        return tokens.tolist().count(token_id)

    none, template, everything = [await num(each) for each in ControlTokens]
    # system, user, assistant, user; and twice in the result, unless it is quoted
    assert template - none == 4
    assert everything - template in (0, 2)


def test_every_place_is_written_by_some_template() -> None:
    written = set()
    for template in TEMPLATES.values():
        probed = ProbedTemplate.of(ChatRenderer(template, {}))
        chat = ModelChat(probed, probed)
        rendered = chat.prompt(whole_conversation(chat, "benign"))
        written |= {place for place in PLACES if f"benign{place}" in rendered}
    assert written == set(PLACES)
