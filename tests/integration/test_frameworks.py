"""LangChain and LlamaIndex, from the index, each over a router: in environments of their own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fake_router import FakeRouter
from tests.wheels import environment_with, run

pytestmark = pytest.mark.slow

LANGCHAIN = """
import asyncio, json, sys
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, ToolMessage
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
try:
    model.invoke([ToolMessage("42", tool_call_id="1")])
except UnsupportedError as error:
    said["refused"] = str(error)

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
from llama_index.core.base.llms.types import ChatMessage, MessageRole
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
try:
    llm.chat([ChatMessage("42", role=MessageRole.TOOL)])
except UnsupportedError as error:
    said["refused"] = str(error)

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


async def said_by(
    script: str, extra: str, wheel: Path, tmp_path: Path, router: FakeRouter
) -> dict[str, Any]:
    """What a script prints in an environment with the wheel and an extra."""
    programs = await asyncio.to_thread(environment_with, tmp_path, f"{wheel}[{extra}]")
    python = programs / "python"
    printed = await asyncio.to_thread(run, python, "-c", script, router.address, cwd=tmp_path)
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


async def test_langchain_answers_streams_and_feeds_sessions(wheel: Path, tmp_path: Path) -> None:
    async with FakeRouter() as router:
        said = await said_by(LANGCHAIN, "langchain", wheel, tmp_path, router)
        appended, updated = sessions(router)
    words = ["one", " two", " three"]
    assert said["stream"] == said["astream"] == said["answer"] == words
    content, usage, metadata = said["invoke"]
    assert content == said["ainvoke"] == said["last"] == "one two three"
    assert (usage["input_tokens"], usage["output_tokens"]) == (12, 3)
    assert metadata["finish_reason"] == "length"
    assert "'tool' are not supported" in said["refused"]
    assert list(router.prompts[1].sampling.stop_strings) == ["END"]
    assert said["appended"] == 3
    assert sorted(appended) == [("append", [name]) for name in "abc"]
    assert (said["updated"], updated) == (2, UPDATES)


async def test_llama_index_answers_streams_and_feeds_sessions(wheel: Path, tmp_path: Path) -> None:
    async with FakeRouter() as router:
        said = await said_by(LLAMA_INDEX, "llama-index", wheel, tmp_path, router)
        appended, updated = sessions(router)
    words = ["one", " two", " three"]
    assert said["stream"] == said["astream"] == words
    assert said["stream_complete"] == said["astream_complete"]
    assert said["stream_complete"][:2] == ["one", "one two"]
    content, details = said["invoke"]
    assert content == said["ainvoke"] == said["complete"] == said["acomplete"] == "one two three"
    assert details["finish_reason"] == "length"
    assert "'tool' are not supported" in said["refused"]
    assert said["appended"] == 3
    assert sorted(appended) == [("append", [name]) for name in "abc"]
    assert (said["updated"], updated) == (2, UPDATES)
