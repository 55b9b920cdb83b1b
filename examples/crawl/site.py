"""The site that is crawled: Python's help, a topic a page, linked where topics name each other."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from html import escape

from aiohttp import web


def links_of(name: str, topics: Mapping[str, str]) -> tuple[str, ...]:
    """The topics that this one's text names in ``code``, in the order of their mention."""
    mentioned = re.findall(r'[`"]([a-z][\w-]*)[`"]', topics[name])
    return tuple(dict.fromkeys(each for each in mentioned if each in topics and each != name))


def page_of(name: str, topics: Mapping[str, str]) -> str:
    """The topic as HTML."""
    links = "".join(f'<li><a href="/{each}">{each}</a></li>' for each in links_of(name, topics))
    paragraphs = "".join(f"<p>{escape(each)}</p>" for each in topics[name].strip().split("\n\n"))
    return (
        f"<html><head><title>{name}</title></head><body>{paragraphs}<ul>{links}</ul></body></html>"
    )


@asynccontextmanager
async def serving(topics: Mapping[str, str], mean_delay_s: float) -> AsyncIterator[str]:
    """Serves the topics on this machine; a page takes an exponential time of this mean.

    Yields the address without a slash at its end.
    """
    rng = random.Random(0)

    async def page(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in topics:
            raise web.HTTPNotFound
        if mean_delay_s:
            await asyncio.sleep(rng.expovariate(1 / mean_delay_s))
        return web.Response(text=page_of(name, topics), content_type="text/html")

    app = web.Application()
    app.add_routes([web.get("/{name}", page)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
