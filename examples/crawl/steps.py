"""The example itself: a site, a crawl of it, and a session that gets each page when it comes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pydoc_data.topics import topics

from examples.crawl.crawler import Page, crawl
from examples.crawl.site import serving
from examples.demo.documents import trimmed
from stream2llm.client import AsyncClient, ChatMessage, Document, Progress, SamplingParameters
from stream2llm.integrations.feed import append_from

Say = Callable[[str], None]
START = "with"
QUESTION = "What is the purpose of a context manager?"
GREEDY = SamplingParameters(max_tokens=48, temperature=0.0)
MAX_PAGE_TOKENS = 300


@dataclass(frozen=True, slots=True)
class Crawl:
    """Bounds and delays of a crawl."""

    max_pages: int = 10
    at_once: int = 3
    # Mean time that the site takes for a page.
    mean_delay_s: float = 1.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer over a crawl, with its tokens and times."""

    answer: str
    num_pages: int
    # From the last page's arrival to the first token.
    ttft_s: float
    # What was prefilled before the last page was there, and all of the prompt.
    prefilled_tokens: int
    prompt_tokens: int


async def run(
    address: str, settings: Crawl, count_tokens: Callable[[str], int], say: Say
) -> Outcome:
    """Crawls the site and asks about it."""
    say(f"question: {QUESTION}")
    async with (
        serving(topics, settings.mean_delay_s) as site,
        AsyncClient(address) as client,
    ):
        # The first steps of an engine are slow.
        await client.generate("Hello", sampling=SamplingParameters(max_tokens=2)).answer()
        pages = crawl(f"{site}/{START}", max_pages=settings.max_pages, at_once=settings.at_once)
        async with client.session(chat=_conversation(), sampling=GREEDY) as session:
            num_pages = await append_from(session, _documents(pages, count_tokens, say))
            progress = session.progress
            say(f"the crawl is complete; {_counts(progress)}")
            answer = await session.answer()
    outcome = Outcome(
        answer=answer.text.strip(),
        num_pages=num_pages,
        ttft_s=answer.finished.timings.ttft_from_seal_s,
        prefilled_tokens=progress.prefilled_tokens,
        prompt_tokens=answer.finished.usage.prompt_tokens,
    )
    say(
        f"{outcome.num_pages} pages, {outcome.prompt_tokens} tokens;"
        f" first token {outcome.ttft_s:.2f} s after the last page"
    )
    say(f"answer: {outcome.answer}")
    return outcome


async def _documents(
    pages: AsyncIterator[Page], count_tokens: Callable[[str], int], say: Say
) -> AsyncIterator[Document]:
    """Each page as a document, trimmed at a paragraph; failures are said and left out."""
    began_s = asyncio.get_running_loop().time()
    async for page in pages:
        at_s = asyncio.get_running_loop().time() - began_s
        if page.error:
            say(f"{at_s:6.1f} s  {page.url}: {page.error}")
            continue
        text = trimmed(f"# {page.title}\n\n{page.text}", MAX_PAGE_TOKENS, count_tokens)
        say(f"{at_s:6.1f} s  {page.url}: {count_tokens(text)} tokens")
        yield Document(text, id=page.url)


def _conversation() -> list[ChatMessage]:
    """Its first line is new each time, so that no prefix cache knows what follows."""
    system = f"Run {uuid.uuid4().hex[:8]}. You answer questions from web pages, in one sentence."
    return [
        ChatMessage("system", system),
        ChatMessage("user", "{{context}}Question: " + QUESTION),
    ]


def _counts(progress: Progress) -> str:
    return f"{progress.prefilled_tokens} of {progress.received_tokens} tokens are prefilled"
