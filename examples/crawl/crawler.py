"""An asynchronous crawler: several pages at once, links followed, each page when it is there."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin, urlsplit

import aiohttp


@dataclass(frozen=True, slots=True)
class Page:
    """A page that was fetched, or the failure of one."""

    url: str
    title: str = ""
    text: str = ""
    links: tuple[str, ...] = ()
    # Why there is no text.
    error: str = ""


class _Reader(HTMLParser):
    """Title, paragraphs and links."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.paragraphs: list[str] = []
        self.links: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        if tag == "p":
            self.paragraphs.append("")
        elif tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title += data
        elif self._inside == "p":
            self.paragraphs[-1] += data


def read_page(url: str, html: str) -> Page:
    """Reads a page's HTML; its links are absolute, and on the same host. Pure."""
    reader = _Reader()
    reader.feed(html)
    targets = (urldefrag(urljoin(url, link)).url for link in reader.links)
    host = urlsplit(url).netloc
    links = dict.fromkeys(each for each in targets if urlsplit(each).netloc == host)
    return Page(url, reader.title.strip(), "\n\n".join(reader.paragraphs), tuple(links))


async def crawl(start: str, *, max_pages: int, at_once: int = 3) -> AsyncIterator[Page]:
    """Yields pages as they come, the start first and at most so many; breadth first.

    A page that cannot be fetched is yielded with its error, and counts.
    """
    waiting, seen, begun = deque([start]), {start}, 0
    fetching: set[asyncio.Task[Page]] = set()
    async with aiohttp.ClientSession() as session:
        try:
            while waiting or fetching:
                while waiting and len(fetching) < at_once and begun < max_pages:
                    fetching.add(asyncio.create_task(_fetched(session, waiting.popleft())))
                    begun += 1
                if not fetching:
                    return
                done, fetching = await asyncio.wait(fetching, return_when=asyncio.FIRST_COMPLETED)
                for page in [task.result() for task in done]:
                    new = [link for link in page.links if link not in seen]
                    seen.update(new)
                    waiting.extend(new)
                    yield page
        finally:
            for task in fetching:
                task.cancel()
            await asyncio.gather(*fetching, return_exceptions=True)


async def _fetched(session: aiohttp.ClientSession, url: str) -> Page:
    try:
        async with session.get(url) as response:
            response.raise_for_status()
            return read_page(url, await response.text())
    except aiohttp.ClientResponseError as error:
        return Page(url, error=f"{error.status} {error.message}")
    except aiohttp.ClientError as error:
        return Page(url, error=str(error))
