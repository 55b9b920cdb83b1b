"""The crawl: links followed, pages as they come, each one an append."""

from __future__ import annotations

import asyncio

from examples.crawl.crawler import Page, crawl, read_page
from examples.crawl.site import links_of, serving
from examples.crawl.steps import Crawl, run
from tests.fake_router import FakeRouter

TOPICS = {
    "start": 'See "left" and "right", and "start" itself.\n\nAnd "gone".',
    "left": 'Also "deep".',
    "right": 'Also "deep" and "left".',
    "deep": "Nothing more.",
}


def names(pages: list[Page]) -> list[str]:
    return [page.url.rpartition("/")[2] for page in pages]


async def crawled(start: str, **options: int) -> list[Page]:
    return [page async for page in crawl(start, **options)]


def test_a_page_has_its_title_its_paragraphs_and_the_links_of_its_host() -> None:
    html = (
        "<title>T</title><p>one &lt;two&gt;</p><p>three</p>"
        '<a href="/a#part">a</a><a href="b">b</a><a href="http://other/c">c</a>'
    )
    page = read_page("http://here/x/y", html)
    assert (page.title, page.text) == ("T", "one <two>\n\nthree")
    assert page.links == ("http://here/a", "http://here/x/b")


def test_a_topic_links_to_those_that_it_names() -> None:
    assert links_of("start", TOPICS) == ("left", "right")


async def test_links_are_followed_breadth_first_and_each_page_once() -> None:
    async with serving(TOPICS, 0) as site:
        pages = await crawled(f"{site}/start", max_pages=10, at_once=1)
        some = await crawled(f"{site}/start", max_pages=2)
    assert names(pages) == ["start", "left", "right", "deep"]
    assert len(some) == 2


async def test_a_page_that_is_not_there_is_an_error_and_not_the_end() -> None:
    async with serving(TOPICS, 0) as site:
        (missing,) = await crawled(f"{site}/missing", max_pages=10)
        address = site
    assert missing.error == "404 Not Found"
    (refused,) = await crawled(f"{address}/start", max_pages=10)
    assert "Cannot connect" in refused.error


async def test_a_crawl_that_is_left_fetches_no_more() -> None:
    async with serving(TOPICS, 0) as site:
        pages = crawl(f"{site}/start", max_pages=10)
        await anext(pages)
        await pages.aclose()  # type: ignore[attr-defined]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_each_page_is_appended_when_it_comes(router: FakeRouter) -> None:
    lines: list[str] = []
    settings = Crawl(max_pages=3, mean_delay_s=0)
    outcome = await run(router.address, settings, lambda text: len(text.split()), lines.append)
    (session,) = router.conversations
    kinds = [request.WhichOneof("event") for request in session.received]
    assert kinds == ["open", "append", "append", "append", "seal"]
    first = session.received[1].append.documents[0]
    assert first.id.endswith("/with")
    assert first.text.startswith("# with\n\n")
    assert (outcome.num_pages, outcome.answer) == (3, "one two three")
    assert any("first token" in line for line in lines)
