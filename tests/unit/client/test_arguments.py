"""What a caller hands in is used as it is meant, or refused by the name of its field."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import Iterator

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client import (
    AsyncClient,
    ChatContentPart,
    ChatMessage,
    Client,
    Document,
    SamplingParameters,
    StructuredOutput,
)
from stream2llm.client.chat_inputs import chat_messages
from stream2llm.client.inputs import appended, template_of, updated
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("no_test_hangs")

HALF = "a\ud800b"
SLOT = "{{context}}"


# -- one item where a list is meant -----------------------------------------------


def test_one_stop_string_is_a_list_of_one():
    sampling = SamplingParameters(stop_strings="END", stop_token_ids=7)
    assert sampling == SamplingParameters(stop_strings=("END",), stop_token_ids=(7,))
    assert SamplingParameters(bad_words="END").bad_words == ("END",)


def test_lists_of_stops_become_tuples():
    sampling = SamplingParameters(stop_strings=["a", "b"], stop_token_ids=np.array([1, 2]))
    assert (sampling.stop_strings, sampling.stop_token_ids) == (("a", "b"), (1, 2))
    bad_words = SamplingParameters(bad_words=["a", [1, 2], np.array([3])]).bad_words
    assert bad_words == ("a", (1, 2), (3,))
    assert hash(sampling) == hash(
        SamplingParameters(stop_strings=["a", "b"], stop_token_ids=[1, 2])
    )


def test_one_document_is_a_list_of_one():
    assert updated("END") == updated(["END"])
    assert updated(Document("x", id="a")) == (Document("x", id="a"),)


def test_one_chat_message_is_a_list_of_one():
    expected = (ChatMessage("user", SLOT),)
    assert chat_messages(ChatMessage("user", SLOT)) == expected
    assert chat_messages({"role": "user", "content": SLOT}) == expected


@pytest.mark.parametrize("value", [{"a": "text"}, {"text"}, b"text", 5, None, 0.5])
@pytest.mark.parametrize(
    ("field", "use"),
    [
        ("update.documents", updated),
        ("chat.messages", chat_messages),
        ("sampling.stop_strings", lambda value: SamplingParameters(stop_strings=value)),
    ],
)
def test_what_has_no_order_or_no_items_is_no_list(field, use, value):
    with pytest.raises(InvalidRequestError) as caught:
        use(value)
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize("value", ["12", True, None, 1.5, b"1"])
def test_what_is_no_list_of_stop_tokens(value):
    with refused(r"sampling\.stop_token_ids", reason="BAD_SAMPLING"):
        SamplingParameters(stop_token_ids=value)


def test_a_text_is_no_chat():
    with pytest.raises(InvalidRequestError, match=r"chat\.messages is 'Hi .*list of chat"):
        template_of(None, None, f"Hi {SLOT}", None)


# -- token ids ---------------------------------------------------------------------


class Tensor:
    """What matters of one of torch's, whose import takes seconds."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[object]:
        raise AssertionError("item by item it is slow")

    def __index__(self) -> int:
        raise TypeError("only integer tensors of a single element can be converted to an index")

    def tolist(self) -> list[int]:
        return [1, 2, 3]


@pytest.mark.parametrize(
    "ids",
    [
        (1, 2, 3),
        range(1, 4),
        [np.int64(1), np.uint8(2), 3],
        np.array([1, 2, 3]),
        np.array([1, 2, 3], dtype=np.uint32),
        array("I", [1, 2, 3]),
        Tensor(),
    ],
    ids=lambda ids: type(ids).__name__,
)
async def test_token_ids_may_be_of_any_integer_type(client, router, ids):
    await client.generate(ids).answer()
    async with client.session(prefix=ids, suffix=ids) as session:
        await session.append(ids, Document(ids))
        await session.answer()
    opened, append, _ = router.received
    for message in (
        router.prompts[0],
        opened.open.plain.prefix,
        opened.open.plain.suffix,
        *append.append.documents,
    ):
        assert list(message.token_ids.ids) == [1, 2, 3]


async def test_no_token_ids_are_token_ids(client, router):
    for empty in ([], np.array([], dtype=int)):
        await client.generate(empty).answer()
        assert router.prompts[-1].WhichOneof("prompt") == "token_ids"
    async with client.session(prefix=[]) as session:
        await session.answer()
    assert router.received[0].open.plain.prefix.WhichOneof("content") == "token_ids"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2.0], r"\[1\] is 2.0 \(float\); it must be an integer between 0 and 4294967295"),
        ([True], r"\[0\] is True; it must be an integer"),
        (np.array([0.5]), r"\[0\] is 0.5 \(float\)"),
        (np.array([True]), r"\[0\] is True"),
        ([1, None], r"\[1\] is None"),
        ([3, -1], r"\[1\] is -1 "),
        ([2**32], r"\[0\] is 4294967296 "),
        (np.array([[1, 2]]), r"\[0\] is \[1, 2\] \(list\)"),
        (5, r" is 5 \(int\); it must be text or a list of token ids"),
        (b"x", r" is b'x' \(bytes\)"),
        ({1: 2}, r"dict"),
    ],
    ids=str,
)
def test_what_is_no_token_id_is_refused_by_its_place(ids, message):
    with pytest.raises(InvalidRequestError, match=r"append\.documents\[1\]" + ".*" + message):
        appended(["first", ids])


# -- None, and values of another type ------------------------------------------------

WITH_NONE = {"max_tokens", "seed", "logprobs", "truncate_prompt_tokens", "structured_output"}


@pytest.mark.parametrize("name", sorted(set(SamplingParameters.__dataclass_fields__) - WITH_NONE))
def test_none_is_no_sampling_parameter(name):
    with refused(f"sampling.{name} is None", field=f"sampling.{name}", reason="BAD_SAMPLING"):
        SamplingParameters(**{name: None})


def test_none_stands_for_not_given_where_that_is_the_default():
    assert SamplingParameters(**dict.fromkeys(WITH_NONE)) == SamplingParameters()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 3.5),
        ("max_tokens", True),
        ("max_tokens", "5"),
        ("temperature", "0.5"),
        ("temperature", True),
        ("seed", 2**70),
        ("stop_strings", [5]),
        ("stop_token_ids", [1.5]),
        ("ignore_eos", "no"),
        ("logit_bias", {1: "much"}),
        ("logit_bias", {"1": 1.0}),
        ("skip_special_tokens", 1),
        ("structured_output", {"regex": "a"}),
        ("structured_output", StructuredOutput(json_object=1)),  # type: ignore[arg-type]
        ("structured_output", StructuredOutput(regex=5)),  # type: ignore[arg-type]
    ],
)
async def test_a_sampling_parameter_of_another_type_is_refused_by_name(client, name, value):
    with refused(rf"sampling\.{name}.* must be", reason="BAD_SAMPLING"):
        client.generate("x", sampling=SamplingParameters(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("bad_words", [1, 2], "bad_words[0]"),
        ("bad_words", ["x", ["y"]], "bad_words[1]"),
        ("bad_words", [[1, 2**32]], "bad_words[0]"),
        ("logit_bias", [(1, 2.0)], "logit_bias"),
    ],
)
def test_what_is_no_bad_word_or_bias_is_refused_by_its_place(name, value, field):
    with refused("must be", field=f"sampling.{field}", reason="BAD_SAMPLING"):
        SamplingParameters(**{name: value})


async def test_numbers_of_numpy_are_numbers(client, router):
    sampling = SamplingParameters(
        max_tokens=np.int32(5),
        temperature=np.float32(0.5),
        ignore_eos=np.True_,
        logit_bias={np.int64(3): np.float16(2)},
    )
    await client.generate("x", sampling=sampling).answer()
    sent = router.prompts[0].sampling
    assert (sent.max_tokens, sent.temperature, sent.ignore_eos) == (5, 0.5, True)
    assert dict(sent.logit_bias) == {3: 2.0}


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("open.session_id", {"session_id": None}),
        ("open.session_id", {"session_id": 7}),
        ("open.model", {"model": None}),
        ("open.ordering", {"ordering": None}),
        ("open.ranking_note", {"ranking_note": 5}),
        ("open.handover", {"handover": "sometimes"}),
        ("chat.context_slot", {"chat": [{"role": "user", "content": "x"}], "context_slot": 5}),
        ("open.plain.prefix", {"prefix": 5}),
        ("sampling", {"sampling": {"temperature": 0}}),
        ("timeout_s", {"timeout_s": 0}),
        ("timeout_s", {"timeout_s": float("nan")}),
        ("timeout_s", {"timeout_s": "5"}),
        ("on_event", {"on_event": "print"}),
        ("on_event", {"on_event": asyncio.sleep}),
    ],
)
async def test_an_argument_of_a_session_is_refused_by_name(client, field, arguments):
    with refused("must be", field=field):
        client.session(**arguments)


@pytest.mark.parametrize(
    ("field", "document"),
    [
        ("update.documents[1].id", Document("x", id=None)),
        ("update.documents[1].id", Document("x", id=7)),
        ("update.documents[1].stays", Document("x", id="a", stays="0.5")),
        ("update.documents[1].content", Document(5, id="a")),
        ("update.documents[1]", None),
    ],
)
async def test_a_document_is_refused_by_its_place_and_the_session_lives_on(client, field, document):
    async with client.session() as session:
        with refused(field=field):
            await session.update(["fine", document])
        assert (await session.answer()).text == "one two three"


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("address", {"address": None}),
        ("address", {"address": ""}),
        ("address", {"address": "127.0.0.1:99999"}),
        ("address", {"address": "127.0.0.1:" + "9" * 5000}),
        ("address", {"address": "dns:///router.example:99999"}),
        ("address", {"address": "dns:///router.example:" + "9" * 5000}),
        ("address", {"address": "http://127.0.0.1:50051"}),
        ("address", {"address": "https://router.example"}),
        ("address", {"address": "127.0.0.1"}),
        ("address", {"address": "router.example:grpc"}),
        ("address", {"address": "::1"}),
        ("address", {"address": "::1:50051"}),
        ("address", {"address": ":50051"}),
        ("address", {"address": "a\0b:50051"}),
        ("address", {"address": " 127.0.0.1:50051"}),
        ("max_message_bytes", {"address": "a:1", "max_message_bytes": "16"}),
        ("max_message_bytes", {"address": "a:1", "max_message_bytes": 0}),
        ("credentials", {"address": "a:1", "credentials": "cert.pem"}),
    ],
)
def test_an_argument_of_a_client_is_refused_by_name(field, arguments):
    for kind in (AsyncClient, Client):
        with refused("must be", field=field):
            kind(**arguments)
    assert "stream2llm-client" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    "address",
    ["router.example:1", "[::1]:50051", "dns:///router.example:50051", "dns:router.example",
     "ipv4:10.0.0.1:50051,10.0.0.2:50051", "ipv6:[::1]:50051", "unix:/run/router.sock"],
)  # fmt: skip
async def test_what_grpc_takes_for_an_address_is_one(address):
    async with AsyncClient(address) as client:
        assert client.address == address


# -- text that has no encoding -------------------------------------------------------

# For each string field that a client can send: what the error calls it, and a call.
CHAT = [{"role": "user", "content": SLOT}]
CALL = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
TEXT = {"type": "text", "text": "x"}
# Cases of one message: the field, what the error calls it, and what the message has.
OF_MESSAGE = [
    ("name", "chat.messages[0].name", {"name": HALF}),
    ("reasoning", "chat.messages[0].reasoning", {"reasoning_content": HALF}),
    ("tool_call_id", "chat.messages[0].tool_call_id", {"tool_call_id": HALF}),
    ("tool_calls.id", "chat.messages[0].tool_calls[1].id", {"tool_calls": [CALL, {**CALL, "id": HALF}]}),
    ("tool_calls.name", "chat.messages[0].tool_calls[0].function.name", {"tool_calls": [{"function": {"name": HALF}}]}),
    (
        "tool_calls.arguments",
        "chat.messages[0].tool_calls[0].function.arguments",
        {"tool_calls": [{"function": {"name": "f", "arguments": {"a": HALF}}}]},
    ),
    ("parts.text", "chat.messages[0].content[1].text", {"content": [TEXT, {"type": "text", "text": HALF}]}),
    ("parts.type", "chat.messages[0].parts[1].type", {"content": [TEXT, ChatContentPart("x", type=HALF)]}),
]  # fmt: skip
CONSTRAINTS = {
    f"sampling.structured_output.{name}": (
        f"sampling.structured_output.{name}{index}",
        {"sampling": SamplingParameters(structured_output=StructuredOutput(**{name: HALF}))},
    )
    for name, index in {
        "json_schema": "",
        "regex": "",
        "choices": "[0]",
        "grammar": "",
        "structural_tag": "",
    }.items()
}
OF_SESSION = {
    **{f"open.{name}": case for name, case in CONSTRAINTS.items()},
    "open.session_id": ("open.session_id", {"session_id": HALF}),
    "open.model": ("open.model", {"model": HALF}),
    "open.plain.prefix.text": ("open.plain.prefix", {"prefix": HALF}),
    "open.plain.suffix.text": ("open.plain.suffix", {"suffix": HALF}),
    "open.chat.messages.role": (
        "chat.messages[0].role",
        {"chat": [{"role": HALF, "content": SLOT}]},
    ),
    "open.chat.messages.content": (
        "chat.messages[0].content",
        {"chat": [{"role": "user", "content": HALF}]},
    ),
    **{
        f"open.chat.messages.{name}": (field, {"chat": [{**CHAT[0], **message}]})
        for name, field, message in OF_MESSAGE
    },
    "open.chat.tools": ("chat.tools[0]", {"chat": CHAT, "tools": [{HALF: 1}]}),
    "open.chat.chat_template_kwargs": (
        "chat.chat_template_kwargs",
        {"chat": CHAT, "chat_template_kwargs": {"x": HALF}},
    ),
    "open.chat.context_slot": ("chat.context_slot", {"chat": CHAT, "context_slot": HALF}),
    "open.ranking_note": ("open.ranking_note", {"ranking_note": HALF}),
    "open.sampling.stop_strings": (
        "sampling.stop_strings[1]",
        {"sampling": SamplingParameters(stop_strings=["x", HALF])},
    ),
    "open.sampling.bad_words.text": (
        "sampling.bad_words[1]",
        {"sampling": SamplingParameters(bad_words=["x", HALF])},
    ),
}
OF_EVENT = {
    "append.documents.id": (
        "append.documents[1].id",
        lambda session: session.append("x", Document("y", id=HALF)),
    ),
    "append.documents.text": (
        "append.documents[1].content",
        lambda session: session.append("x", HALF),
    ),
    "update.documents.id": (
        "update.documents[0].id",
        lambda session: session.update([Document("y", id=HALF)]),
    ),
    "update.documents.text": (
        "update.documents[0].content",
        lambda session: session.update([HALF]),
    ),
    "seal.suffix.text": ("seal.suffix", lambda session: session.answer(HALF)),
    "seal.append.documents.id": (
        "seal.append.documents[0].id",
        lambda session: session.answer(append=[Document("y", id=HALF)]),
    ),
    "seal.append.documents.text": (
        "seal.append.documents[1].content",
        lambda session: session.answer(append=["x", HALF]),
    ),
    "seal.update.documents.id": (
        "seal.update.documents[0].id",
        lambda session: session.answer(update=[Document("y", id=HALF)]),
    ),
    "seal.update.documents.text": (
        "seal.update.documents[0].content",
        lambda session: session.answer(update=[HALF]),
    ),
}
OF_PROMPT = {
    **{name: (field, "x", arguments) for name, (field, arguments) in CONSTRAINTS.items()},
    "text": ("prompt", HALF, {}),
    "session_id": ("session_id", "x", {"session_id": HALF}),
    "model": ("model", "x", {"model": HALF}),
    "chat.messages.role": ("chat.messages[0].role", [ChatMessage(HALF, "x")], {}),
    "chat.messages.content": ("chat.messages[0].content", [ChatMessage("user", HALF)], {}),
    **{
        f"chat.messages.{name}": (field, [{**CHAT[0], **message}], {})
        for name, field, message in OF_MESSAGE
    },
    "chat.tools": ("chat.tools[1]", CHAT, {"tools": ["{}", HALF]}),
    "chat.chat_template_kwargs": (
        "chat.chat_template_kwargs",
        CHAT,
        {"chat_template_kwargs": HALF},
    ),
    "sampling.stop_strings": (
        "sampling.stop_strings[0]",
        "x",
        {"sampling": SamplingParameters(stop_strings=HALF)},
    ),
    "sampling.bad_words.text": (
        "sampling.bad_words[0]",
        "x",
        {"sampling": SamplingParameters(bad_words=HALF)},
    ),
}


def string_fields(message: Descriptor, path: str = "") -> Iterator[str]:
    """Dotted names of all fields of text in a message and the messages in it."""
    for field in message.fields:
        name = f"{path}.{field.name}" if path else field.name
        if field.type == FieldDescriptor.TYPE_STRING:
            yield name
        elif field.message_type is not None:
            yield from string_fields(field.message_type, name)


def test_every_string_field_has_a_case_here():
    assert set(string_fields(pb.StreamGenerateRequest.DESCRIPTOR)) == {*OF_SESSION, *OF_EVENT}
    assert set(string_fields(pb.GenerateRequest.DESCRIPTOR)) == set(OF_PROMPT)


@pytest.mark.parametrize(("field", "arguments"), OF_SESSION.values(), ids=OF_SESSION)
async def test_text_without_an_encoding_is_refused_at_the_open(client, field, arguments):
    with refused(r"U\+D800", field=field, reason="NOT_ENCODABLE"):
        client.session(**arguments)


@pytest.mark.parametrize(("field", "call"), OF_EVENT.values(), ids=OF_EVENT)
async def test_text_without_an_encoding_is_refused_and_the_session_lives_on(client, field, call):
    async with client.session() as session:
        with refused(r"the character at 1 is U\+D800", field=field, reason="NOT_ENCODABLE"):
            await call(session)
        await session.append("fine")
        assert (await session.answer()).text == "one two three"


@pytest.mark.parametrize(("field", "prompt", "arguments"), OF_PROMPT.values(), ids=OF_PROMPT)
async def test_text_without_an_encoding_is_refused_in_a_prompt(client, field, prompt, arguments):
    with refused(r"U\+D800", field=field, reason="NOT_ENCODABLE"):
        client.generate(prompt, **arguments)


async def test_text_without_an_encoding_is_no_model(client):
    with pytest.raises(InvalidRequestError, match="model cannot be encoded"):
        await client.model_info(HALF)


def test_the_synchronous_client_refuses_the_same_and_lives_on(threaded_router):
    with Client(threaded_router.fake.address) as client, client.session() as session:
        with pytest.raises(InvalidRequestError, match=r"append\.documents\[0\]\.content cannot"):
            session.append(HALF)
        with pytest.raises(InvalidRequestError, match=r"update\.documents is None"):
            session.update(None)
        session.update("one document")
        assert session.answer().text == "one two three"
    assert [document.text for document in threaded_router.fake.received[1].update.documents] == [
        "one document"
    ]
