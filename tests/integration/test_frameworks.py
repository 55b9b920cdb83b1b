"""LangChain and LlamaIndex, from the index, over a router or a gateway: in environments of their own."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fake_router import FakeRouter
from tests.gateway_ring import a_gateway
from tests.tiny_model import make_tiny_model
from tests.wheels import environment_with, run

pytestmark = pytest.mark.slow

LANGCHAIN = """
import asyncio, json, sys
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.retrievers import BaseRetriever
from stream2llm.api.errors import UnsupportedError
from stream2llm.integrations.feed import append_from, update_from
from stream2llm.integrations.langchain import ChatStream2LLM, answer_chunks, ranked, retrieved

class Shelf(BaseRetriever):
    names: list[str]
    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(page_content=f"{query} in {name}", id=name) for name in self.names]

model = ChatStream2LLM(address=sys.argv[1], max_tokens=3, temperature=0)
said = {"stream": [each.content for each in model.stream("Who?") if each.content]}
message = model.invoke([HumanMessage("Who?")], stop=["END"])
said["invoke"] = [message.content, message.usage_metadata, message.response_metadata]
model.bind(max_tokens=2, temperature=0.5, seed=7).invoke("Who?")
image = {"type": "image_url", "image_url": {"url": "data:,"}}
call = {"name": "look", "args": {}, "id": "1"}
tools = [{"type": "function", "function": {"name": "look"}}]
for name, ask in {
    "role": lambda: model.invoke([ToolMessage("42", tool_call_id="1")]),
    "calls": lambda: model.invoke([AIMessage("", tool_calls=[call])]),
    "image": lambda: list(model.stream([HumanMessage([{"type": "text", "text": "a"}, image])])),
    "tools": lambda: model.bind(tools=tools).invoke("Who?"),
    "atools": lambda: asyncio.run(model.ainvoke("Who?", tools=tools)),
}.items():
    try:
        ask()
    except UnsupportedError as error:
        said[name] = str(error)

async def main():
    said["ainvoke"] = (await model.ainvoke("Who?")).content
    said["astream"] = [each.content async for each in model.astream("Who?") if each.content]
    chat = [("system", "Be brief."), ("user", "{{context}}Who?")]
    async with model.session(chat) as session:
        sources = (retrieved(Shelf(names=names), "Who?") for names in (["a", "b"], ["c"]))
        said["appended"] = await append_from(session, *sources)
        said["answer"] = [each.content async for each in answer_chunks(session) if each.content]
    async with model.session(chat) as session:
        lists = ranked([Shelf(names=["a", "b"]), Shelf(names=["b", "a"])], "Who?")
        said["updated"] = await update_from(session, lists)
        said["last"] = (await session.answer()).text

asyncio.run(main())
print(json.dumps(said))
"""

LLAMA_INDEX = """
import asyncio, json, sys
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, TextNode
from stream2llm.api.errors import UnsupportedError
from stream2llm.integrations.feed import append_from, update_from
from stream2llm.integrations.llama_index import Stream2LLM, ranked, retrieved

class Shelf(BaseRetriever):
    def __init__(self, *names):
        super().__init__()
        self.names = names
    def _retrieve(self, query):
        return [NodeWithScore(node=TextNode(text=f"in {name}", id_=name)) for name in self.names]

class Reversed(BaseNodePostprocessor):
    def _postprocess_nodes(self, nodes, query_bundle=None):
        return nodes[::-1]

llm, chat = Stream2LLM(address=sys.argv[1], max_tokens=3, temperature=0), [ChatMessage("Who?")]
said = {"stream": [each.delta for each in llm.stream_chat(chat) if each.delta]}
said["stream_complete"] = [each.text for each in llm.stream_complete("Who")]
response = llm.chat(chat)
said["invoke"] = [response.message.content, response.additional_kwargs]
said["complete"] = llm.complete("Who").text
llm.chat(chat, max_tokens=2, temperature=0.5, stop=["END"])
call = ChatMessage("", role=MessageRole.ASSISTANT, additional_kwargs={"tool_calls": [{"id": "1"}]})
for name, ask in {
    "role": lambda: llm.chat([ChatMessage("42", role=MessageRole.TOOL)]),
    "calls": lambda: llm.chat([call]),
    "image": lambda: list(llm.stream_chat([ChatMessage(blocks=[ImageBlock(url="data:,")])])),
    "tools": lambda: llm.complete("Who", tools=[]),
    "atools": lambda: asyncio.run(llm.achat(chat, tools=[])),
}.items():
    try:
        ask()
    except UnsupportedError as error:
        said[name] = str(error)

async def main():
    said["ainvoke"] = (await llm.achat(chat)).message.content
    said["acomplete"] = (await llm.acomplete("Who")).text
    said["astream"] = [each.delta async for each in await llm.astream_chat(chat) if each.delta]
    said["astream_complete"] = [each.text async for each in await llm.astream_complete("Who")]
    async with llm.connect() as client:
        async with client.session(suffix="Who?") as session:
            sources = (retrieved(Shelf("a", "b"), "Who?"), retrieved(Shelf("c"), "Who?"))
            said["appended"] = await append_from(session, *sources)
            await session.answer()
        async with client.session(suffix="Who?") as session:
            lists = ranked(Shelf("a", "b"), [Reversed()], "Who?")
            said["updated"] = await update_from(session, lists)
            said["last"] = (await session.answer()).text

asyncio.run(main())
print(json.dumps(said))
"""


# LangChain's own client of OpenAI's API; each address answers in another way.
CHAT_OPENAI = """
import asyncio, json, sys
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

def model(url):
    return ChatOpenAI(model="tiny", base_url=url, api_key="any", max_tokens=64, temperature=0,
                      stream_usage=True, max_retries=0)

class look(BaseModel):
    "Looks something up."
    q: str

plain, calling, structured = map(model, sys.argv[1:])
message = plain.invoke([("system", "Be brief."), ("user", "Who?")])
said = {"invoke": message.content, "usage": message.usage_metadata["output_tokens"]}
chunks = list(plain.stream("Who?"))
said["stream"] = "".join(each.content for each in chunks)
said["streamed_usage"] = sum((each.usage_metadata or {}).get("output_tokens", 0) for each in chunks)
said["ainvoke"] = asyncio.run(plain.ainvoke("Who?")).content
bound = calling.bind_tools([look], tool_choice="required")
called = bound.invoke("Who?")
said["calls"] = [[each["name"], each["args"]] for each in called.tool_calls]
first, *others = bound.stream("Who?")
said["streamed_calls"] = [[each["name"], each["args"]] for each in sum(others, first).tool_calls]
found = ToolMessage("42", tool_call_id=called.tool_calls[0]["id"])
said["after"] = plain.invoke([HumanMessage("Who?"), called, found]).content
for method in ("json_schema", "function_calling"):
    asked = structured.with_structured_output(look, method=method)
    said[method] = asked.invoke("Who?").model_dump()
print(json.dumps(said))
"""


async def said_by(script: str, requirement: str, tmp_path: Path, *addresses: str) -> dict[str, Any]:
    """What a script prints in an environment with what is required."""
    programs = await asyncio.to_thread(environment_with, tmp_path / "env", requirement)
    python = programs / "python"
    printed = await asyncio.to_thread(run, python, "-c", script, *addresses, cwd=tmp_path)
    said: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return said


def sessions(router: FakeRouter) -> list[list[tuple[str, list[str]]]]:
    """The context events of each session, with the ids of their documents."""
    return [
        [
            (kind, [each.id for each in getattr(request, kind).documents])
            for request in conversation.received
            if (kind := request.WhichOneof("event")) in ("append", "update")
        ]
        for conversation in router.conversations
    ]


UPDATES = [("update", ["a", "b"]), ("update", ["b", "a"])]


def assert_all_refused(said: dict[str, Any]) -> None:
    """What no answer of text honours is refused by its name."""
    assert "'tool' are not supported" in said["role"]
    assert "tool_calls of messages" in said["calls"]
    assert "content of type 'image" in said["image"]
    assert said["tools"] == said["atools"]
    assert said["tools"].startswith("tools is not supported")


async def test_langchain_answers_streams_and_feeds_sessions(wheel: Path, tmp_path: Path) -> None:
    async with FakeRouter() as router:
        said = await said_by(LANGCHAIN, f"{wheel}[langchain]", tmp_path, router.address)
        appended, updated = sessions(router)
    words = ["one", " two", " three"]
    assert said["stream"] == said["astream"] == said["answer"] == words
    content, usage, metadata = said["invoke"]
    assert content == said["ainvoke"] == said["last"] == "one two three"
    assert (usage["input_tokens"], usage["output_tokens"]) == (12, 3)
    assert metadata["finish_reason"] == "length"
    assert_all_refused(said)
    assert list(router.prompts[1].sampling.stop_strings) == ["END"]
    bound = router.prompts[2].sampling
    assert (bound.max_tokens, bound.temperature, bound.seed) == (2, 0.5, 7)
    assert said["appended"] == 3
    assert sorted(appended) == [("append", [name]) for name in "abc"]
    assert (said["updated"], updated) == (2, UPDATES)


async def test_llama_index_answers_streams_and_feeds_sessions(wheel: Path, tmp_path: Path) -> None:
    async with FakeRouter() as router:
        said = await said_by(LLAMA_INDEX, f"{wheel}[llama-index]", tmp_path, router.address)
        appended, updated = sessions(router)
    words = ["one", " two", " three"]
    assert said["stream"] == said["astream"] == words
    assert said["stream_complete"] == said["astream_complete"]
    assert said["stream_complete"][:2] == ["one", "one two"]
    content, details = said["invoke"]
    assert content == said["ainvoke"] == said["complete"] == said["acomplete"] == "one two three"
    assert details["finish_reason"] == "length"
    assert_all_refused(said)
    given = router.prompts[4].sampling
    assert (given.max_tokens, given.temperature) == (2, 0.5)
    assert list(given.stop_strings) == ["END"]
    assert said["appended"] == 3
    assert sorted(appended) == [("append", [name]) for name in "abc"]
    assert (said["updated"], updated) == (2, UPDATES)


async def test_langchain_s_chat_openai_talks_to_a_gateway(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path)
    async with AsyncExitStack() as stack:
        plain, calling, structured = [
            await stack.enter_async_context(a_gateway(tiny)) for _ in range(3)
        ]
        for gateway, answer in (
            (plain, "one two three"),
            (calling, '[{"name": "look", "parameters": {"q": "a lake"}}]'),
            (structured, '{"q": "a lake"}'),
        ):
            gateway.ring.brain.script = gateway.ring.encode(answer)
        urls = (gateway.base_url for gateway in (plain, calling, structured))
        said = await said_by(CHAT_OPENAI, "langchain-openai>=1.0,<2", tmp_path, *urls)
        schema = structured.ring.record.open.sampling.structured_output.json_schema
    texts = [said[name] for name in ("invoke", "stream", "ainvoke", "after")]
    assert texts == ["one two three"] * 4
    assert said["usage"] == said["streamed_usage"] > 0
    assert said["calls"] == said["streamed_calls"] == [["look", {"q": "a lake"}]]
    assert said["json_schema"] == said["function_calling"] == {"q": "a lake"}
    assert list(json.loads(schema)["properties"]) == ["q"]
