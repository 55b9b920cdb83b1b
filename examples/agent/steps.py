"""The example itself: turn after turn, tools side by side, and an answer to each question."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from examples.agent.tools import Call, calls_for
from stream2llm.client import AsyncClient, ChatMessage, Document, SamplingParameters
from stream2llm.integrations.feed import append_from

Say = Callable[[str], None]
QUESTIONS = (
    "What is json.dumps for?",
    "How is json.loads different from that?",
    "Is pprint.pformat meant for people or for programs?",
)
SYSTEM = "You answer questions about Python from what tools found, in one sentence."
SLOT = "{{context}}"
GREEDY = SamplingParameters(max_tokens=40, temperature=0.0)


@dataclass(frozen=True, slots=True)
class Turn:
    """One question, answered."""

    question: str
    answer: str
    num_results: int
    # From the last result to the first token.
    ttft_s: float
    prompt_tokens: int
    # What of them the conversation so far had left in the prefix cache.
    reused_tokens: int


class Agent:
    """Keeps the conversation; each turn's session begins with all of it.

    As documents and not as messages: documents are tokenized one by one, so that a turn has the
    tokens that the turn before left in the prefix cache.
    """

    def __init__(self, client: AsyncClient, mean_delay_s: float, say: Say) -> None:
        """`mean_delay_s` is how long a tool takes on average, as if it asked another machine."""
        self._client = client
        self._mean_delay_s = mean_delay_s
        self._say = say
        self._rng = random.Random(0)
        self._so_far: list[str] = []

    async def ask(self, question: str) -> Turn:
        """Runs the tools side by side, appends each result when it comes, and answers."""
        self._say(f"\n{question}")
        found: list[str] = []
        chat = [ChatMessage("system", SYSTEM), ChatMessage("user", f"{SLOT}Question: {question}")]
        async with self._client.session(chat=chat, sampling=GREEDY) as session:
            if self._so_far:
                await session.append(*self._so_far)
            await append_from(session, *(self._run(call, found) for call in calls_for(question)))
            answer = await session.answer()
        text = answer.text.strip()
        # With the results in the order in which they came.
        self._so_far += [*found, f"Question: {question}\nAnswer: {text}\n\n"]
        finished = answer.finished
        turn = Turn(
            question, text, len(found), finished.timings.ttft_from_seal_s,
            finished.usage.prompt_tokens, finished.usage.reused_tokens,
        )  # fmt: skip
        self._say(
            f"  {turn.answer}\n  ({turn.prompt_tokens} tokens, {turn.reused_tokens} of them cached;"
            f" first token {turn.ttft_s:.2f} s after the last result)"
        )
        return turn

    async def _run(self, call: Call, found: list[str]) -> AsyncIterator[Document]:
        if self._mean_delay_s:
            await asyncio.sleep(self._rng.expovariate(1 / self._mean_delay_s))
        result = call.result()
        self._say(f"  {call.tool} of {call.name}: {len(result.split())} words")
        found.append(result)
        yield Document(result, id=f"{call.tool} {call.name}")


async def run(address: str, questions: Sequence[str], mean_delay_s: float, say: Say) -> list[Turn]:
    """One conversation."""
    async with AsyncClient(address) as client:
        # The first steps of an engine are slow.
        await client.generate("Hello", sampling=SamplingParameters(max_tokens=2)).answer()
        agent = Agent(client, mean_delay_s, say)
        return [await agent.ask(question) for question in questions]
