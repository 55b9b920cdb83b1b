"""A page in a headless Chromium, steered over its DevTools protocol."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests import debian
from tests.polling import eventually

# The browser's start, and whatever a page does.
LIMIT_S = 60.0
_PACKAGE = "chromium-headless-shell"
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"),
    *("--remote-debugging-port=0", "--no-proxy-server"),
)


class Page:
    """One page. What it raises is raised."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count()

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        asked = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": "Runtime.evaluate", "params": asked})
        while (answer := await self._socket.receive_json()).get("id") != number:
            pass
        result = answer["result"]
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str) -> None:
        """Waits until the expression holds."""
        await eventually(lambda: self.evaluate(f"Boolean({expression})"), bool, LIMIT_S)


@asynccontextmanager
async def a_page(url: str, profile: Path) -> AsyncIterator[Page]:
    """The page in a browser of its own; skips the test where there is none."""
    browser = debian.program(_PACKAGE, _PACKAGE)
    # Not asyncio: the browser's children would hold its pipes open.
    process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [browser, *_FLAGS, f"--user-data-dir={profile}", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=debian.environment(browser),
        # The program may be a script, and the browser its child.
        start_new_session=True,
    )
    try:
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://{await _address(profile)}/json/list") as response:
                target = next(each for each in await response.json() if each["type"] == "page")
            async with http.ws_connect(target["webSocketDebuggerUrl"]) as socket:
                page = Page(socket)
                await page.until(f"location.href === {url!r} && document.readyState === 'complete'")
                yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _address(profile: Path) -> str:
    """Where the browser listens, which it writes into its profile."""
    file = profile / "DevToolsActivePort"

    async def lines() -> list[str]:
        return file.read_text().splitlines() if file.exists() else []

    port, _ = await eventually(lines, lambda found: len(found) == 2, LIMIT_S)
    return f"127.0.0.1:{port}"
