"""The agent: tools side by side, results as they come, turns that begin with all before."""

from __future__ import annotations

import pytest

from examples.agent.steps import QUESTIONS, run
from examples.agent.tools import TOOLS, Call, calls_for
from tests.fake_router import FakeRouter


def test_every_name_of_a_question_is_asked_of_every_tool() -> None:
    assert calls_for("Is json.dumps like json.dumps or re.sub?") == tuple(
        Call(tool, name) for name in ("json.dumps", "re.sub") for tool in TOOLS
    )
    assert calls_for("Why?") == ()
    assert all(calls_for(question) for question in QUESTIONS)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (Call("description", "json.loads"), "Deserialize"),
        (Call("signature", "json.dumps"), "json.dumps(obj, *, skipkeys=False"),
        (Call("signature", "math.pi"), "no signature"),
        (Call("neighbours", "json.dumps"), "loads"),
        (Call("description", "json.nothing"), "cannot be found"),
        (Call("description", "no_such_module.x"), "cannot be found"),
    ],
)
def test_a_tool_says_what_python_knows(call: Call, part: str) -> None:
    result = call.result()
    assert result.startswith(f"# {call.tool} of {call.name}\n")
    assert part in result


async def test_a_turn_begins_with_the_conversation_so_far(router: FakeRouter) -> None:
    turns = await run(router.address, QUESTIONS[:2], 0.0, lambda _: None)
    assert [turn.num_results for turn in turns] == [len(TOOLS), len(TOOLS)]
    assert {turn.answer for turn in turns} == {"one two three"}
    first, second = (each.received for each in router.conversations)
    assert [each.WhichOneof("event") for each in first] == ["open", *["append"] * 3, "seal"]
    before, *results, _ = second[1:]
    said = [each.text for each in before.append.documents]
    assert said[:-1] == [each.append.documents[0].text for each in first[1:-1]]
    assert said[-1] == f"Question: {QUESTIONS[0]}\nAnswer: one two three\n\n"
    assert [len(each.append.documents) for each in results] == [1, 1, 1]
