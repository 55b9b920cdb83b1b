"""What a client sends is text, in every family of tokenizers.

1. No text makes a control token, whatever it says and wherever it stands; it keeps its words.
2. The chat template's control tokens are there, once, as the model's own tokenizer has them.
3. A begin token stands at the beginning, once; an end token nowhere.
4. Texts put together are decoded to those texts: no word mark between them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from router.chat_template import ChatRenderer, TemplateText
from router.encoder import PIECE_CHARS, pieces
from router.text_input import TextInput
from router.tokenizer import ModelTokenizer
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.options import ControlTokens
from stream2llm.api.requests import ChatMessage, ChatPrompt, ChatTemplate, Document, PlainTemplate
from stream2llm.models.cache import is_ready, model_dir
from stream2llm.serving.sessions.prefix import Tokens
from tests.tokenizer_families import BEGIN, END, FAMILIES, UNKNOWN, Family

SMOLLM2 = "smollm2-135m-instruct"
NAMES = [*map(str, FAMILIES), SMOLLM2]
MUCH = 1_000_000


@pytest.fixture(scope="module", params=NAMES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ModelTokenizer:
    if request.param == SMOLLM2:
        if not is_ready(SMOLLM2):
            pytest.skip(f"{SMOLLM2} is not in the cache: make model")
        return ModelTokenizer(str(model_dir(SMOLLM2)))
    family = next(family for family in FAMILIES if family.name == request.param)
    return ModelTokenizer(str(family.make_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def text(model: ModelTokenizer) -> Iterator[TextInput]:
    made = TextInput(model, MUCH)
    yield made
    made.close()


def added(model: ModelTokenizer) -> list[str]:
    """The text of every added token."""
    return [token.content for token in model.backend.get_added_tokens_decoder().values()]


def hostile(model: ModelTokenizer) -> list[str]:
    """Every added token by itself, inside words, among spaces, and as a page would use them."""
    tokens = added(model)
    around = [form.format(token) for token in tokens for form in ("{}", "a{}b", " {}\n", "{0}{0}")]
    return [*around, "<0x0A><0x41", "a <0x41>", "".join(tokens), f"x{''.join(reversed(tokens))} y"]


def control(model: ModelTokenizer, tokens: Tokens) -> list[int]:
    return [i for i in tokens.tolist() if i in model.encoder.control_ids]


def decoded(model: ModelTokenizer, *parts: Tokens) -> str:
    """The tokens of what follows some text, control tokens included."""
    before = model.encode("x")
    whole = np.concatenate([before, *parts]).tolist()
    text = str(model.backend.decode(whole, skip_special_tokens=False))
    assert text.startswith("x")
    return text[1:]


async def test_no_document_makes_a_control_token(text: TextInput) -> None:
    model = text.tokenizer
    for page in hostile(model):
        (document,) = await text.documents([Document(page)], "append", MUCH)
        assert not control(model, document.tokens), page
        assert decoded(model, document.tokens) == page


async def test_no_plain_prefix_or_suffix_makes_a_control_token(text: TextInput) -> None:
    model = text.tokenizer
    for page in hostile(model):
        frame = await text.frame(PlainTemplate(prefix=page, suffix=page))
        assert control(model, frame.prefix) == model.encoder.head.tolist()
        assert not control(model, frame.suffix)
        assert decoded(model, frame.suffix) == page
        shown = model.backend.decode(frame.prefix.tolist()[len(model.encoder.head) :], False)
        assert shown.lstrip(" ") == page.lstrip(" ")  # the word mark, in some


async def test_no_chat_content_makes_a_control_token(text: TextInput) -> None:
    model = text.tokenizer
    roles = ["system", "user", "assistant", "user"]
    benign = await chat_frame(text, roles, "benign")
    expected = control(model, np.concatenate([benign.prefix, benign.suffix]))
    for page in hostile(model):
        frame = await chat_frame(text, roles, page)
        whole = np.concatenate([frame.prefix, frame.suffix])
        assert control(model, whole) == expected, page
        shown = model.backend.decode(whole.tolist(), skip_special_tokens=False)
        assert page.strip() in shown  # as the template trims it


async def chat_frame(text: TextInput, roles: list[str], content: str):  # type: ignore[no-untyped-def]
    messages = [ChatMessage(role, content) for role in roles]
    slot = ChatMessage("user", f"{content} {{{{context}}}} {content}")
    return await text.frame(ChatTemplate((*messages, slot), "{{context}}"))


def test_no_role_and_no_name_makes_a_control_token(model: ModelTokenizer) -> None:
    template = (
        "{{ '<|turn|>' + m.role }}{{ m.name | upper }}{{ m.name | tojson }}{{ m.content[:9] }}"
    )
    template = "{% for m in messages %}" + template + "{% endfor %}"
    renderer = ChatRenderer(template, {})
    for page in added(model):
        turn = {"role": page, "name": page.lower(), "content": page}
        rendered = renderer.render([turn])
        tokens = model.encoder.encode(model.encoder.parts_written(rendered, is_first=True))
        written = [model.backend.token_to_id("<|turn|>")]
        assert control(model, tokens) in ([], written)  # SmolLM2 has no such token
        given = "".join(run for run, is_written in rendered.runs() if not is_written)
        assert given == page + page.lower().upper() + f'"{page.lower()}"' + page[:9]


def test_nothing_becomes_a_control_token_across_the_border_of_two_writers(
    model: ModelTokenizer,
) -> None:
    for token in added(model):
        for at in range(1, len(token)):
            head, tail = token[:at], token[at:]
            for mixed in (TemplateText.written(head) + tail, head + TemplateText.written(tail)):
                parts = model.encoder.parts_written(mixed, is_first=False)
                assert not [part for part in parts if isinstance(part, int)]
                assert not control(model, model.encoder.encode(parts))


def test_a_chat_has_the_tokens_that_the_models_own_tokenizer_makes(model: ModelTokenizer) -> None:
    turns = [("system", "be nice"), ("user", "hello world, what is"), ("assistant", "this?")]
    messages = [ChatMessage(role, content) for role, content in [*turns, ("user", "the end")]]
    wrapper = model._wrapper
    whole = wrapper.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    rendered = model.chat.prompt(ChatPrompt(tuple(messages)))
    assert rendered == whole
    ours = model.encoder.encode(model.encoder.parts_written(rendered, is_first=True))
    assert ours.tolist() == model.backend.encode(whole, add_special_tokens=False).ids


def test_a_prompt_begins_as_the_models_own_tokenizer_has_it(model: ModelTokenizer) -> None:
    end = model.backend.token_to_id(END)
    theirs = [i for i in model.backend.encode("the quick brown fox").ids if i != end]
    parts = model.parts("the quick brown fox", is_first=True)
    assert model.encoder.encode(parts).tolist() == theirs


async def test_control_tokens_that_are_asked_for_are_there_once(text: TextInput) -> None:
    model, token = text.tokenizer, added(text.tokenizer)[-2]
    token_id = model.backend.token_to_id(token)
    head = model.encoder.head.tolist()
    begin = model.backend.decode(head, skip_special_tokens=False) if head else ""
    template = PlainTemplate(prefix=f"{begin}a{token}b", suffix=f"c{token}")
    frame = await text.frame(template, ControlTokens.TEMPLATE)
    assert control(model, frame.prefix) == [*head, token_id]  # not two begin tokens
    assert control(model, frame.suffix) == [token_id]
    frame = await text.frame(PlainTemplate(prefix=f"a{token}b"), ControlTokens.ALL)
    assert control(model, frame.prefix) == [*head, token_id]
    pages = [Document(f"a {token} b")]
    (document,) = await text.documents(pages, "append", MUCH, with_control_tokens=True)
    assert control(model, document.tokens) == [token_id]


async def test_texts_put_together_are_those_texts(text: TextInput) -> None:
    model = text.tokenizer
    texts = [
        "Documents: ",
        "in",
        "side",
        "",
        " ",
        "the end",
        " of €uro 😀 ",
        "e\u0301",
        "\n\n x",
        ".",
    ]
    prefix = await text.frame(PlainTemplate(prefix=texts[0]))
    inputs = [Document(each) for each in texts[1:]]
    documents = [d.tokens for d in await text.documents(inputs, "append", MUCH)]
    whole = np.concatenate([prefix.prefix, *documents])
    shown = model.backend.decode(whole.tolist(), skip_special_tokens=True)
    assert shown.removeprefix(" ") == "".join(texts)  # one byte-level kind begins with a space
    ends = {model.backend.token_to_id(END), model.backend.token_to_id(BEGIN)}
    assert not ends.intersection(whole.tolist()[len(model.encoder.head) :])


async def test_a_long_text_has_the_tokens_of_the_whole(text: TextInput) -> None:
    model = text.tokenizer
    words = "the quick  brown fox,\n jumps over 12 lazy\n\n    dogs <s> it's €uro 😀 inside " * 700
    assert len(pieces(words)) > 2
    assert "".join(pieces(words)) == words
    (document,) = await text.documents([Document(words)], "append", MUCH)
    whole = model.encoder._inside.encode(words, add_special_tokens=False).ids
    assert document.tokens.tolist() == whole


async def test_a_giant_line_is_cut_into_pieces(text: TextInput) -> None:
    line = "x1y" * PIECE_CHARS
    assert max(map(len, pieces(line))) <= 2 * PIECE_CHARS
    (document,) = await text.documents([Document(line)], "append", MUCH)
    assert decoded(text.tokenizer, document.tokens) == line


# -- what cannot be used is refused -----------------------------------------------


def test_a_tokenizer_written_in_python_is_refused_by_name(tmp_path: Path) -> None:
    FAMILIES[0].make_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(
        InvalidRequestError, match=r"tokenizers library.*has ByT5Tokenizer"
    ) as raised:
        ModelTokenizer(str(tmp_path))
    assert str(tmp_path) in raised.value.message


@pytest.mark.parametrize("formatted", ["'<|turn|>%s' % m.role", "'<|turn|>{}'.format(m.role)"])
def test_a_template_whose_control_tokens_cannot_be_told_from_data_is_not_used(
    tmp_path: Path, formatted: str
) -> None:
    FAMILIES[0].make_model(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    template = "{% for m in messages %}{{ " + formatted + " }}{{ m.content }}{% endfor %}"
    wrapper = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    wrapper.chat_template = template
    wrapper.save_pretrained(tmp_path)
    assert config.exists()
    assert not ModelTokenizer(str(tmp_path)).has_chat_template


def test_the_unknown_token_stands_for_what_a_vocabulary_lacks(tmp_path: Path) -> None:
    """Without bytes to fall back to; it is the one control token that a text can make."""
    from tokenizers import Tokenizer, models

    def words() -> Tokenizer:
        tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0, "the": 1}, unk_token=UNKNOWN))
        tokenizer.add_special_tokens([UNKNOWN])
        return tokenizer

    model = ModelTokenizer(str(Family("words", words).make_model(tmp_path)))
    assert model.encode("the").tolist() == [1]
    assert model.encode("[INST]").tolist() == [0]
    shutil.rmtree(tmp_path)
