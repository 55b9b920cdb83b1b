"""The page that a gateway serves when asked, in a real browser before a real router."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser import a_page

WEB = Path(__file__).parents[3] / "examples" / "web"


@pytest.mark.slow  # it may have to fetch the browser
async def test_the_page_shows_results_counts_and_the_answer(
    make_gateway: Any, tmp_path: Path
) -> None:
    gateway = await make_gateway(web_folder=WEB, max_model_len=4000)
    ring = gateway.ring
    async with a_page(f"{gateway.url}/web/", tmp_path) as page:
        await page.evaluate("document.querySelector('form').requestSubmit()")
        text = "document.getElementById('{}').textContent"
        await page.until(f"{text.format('awaited')} || {text.format('failure')}")
        shown = {
            name: await page.evaluate(text.format(name))
            for name in ("failure", "answer", "received", "invalidated", "streamed", "awaited")
        }
        results = await page.evaluate("document.querySelectorAll('#results li').length")
    assert shown["failure"] == ""
    assert results == 5
    streamed, awaited = ring.prefill.records
    answer = ring.brain.answer(streamed.sequence, ring.brain.num_tokens)
    assert shown["answer"] == ring.decode_text(answer)
    assert int(shown["received"]) == len(streamed.sequence)
    assert int(shown["invalidated"]) == streamed.invalidated > 0
    assert shown["streamed"].endswith(" ms")
    assert shown["awaited"].endswith(" ms")
    # Both prompts are the same but for the nonce.
    assert ring.decode_text(awaited.sequence)[60:] == ring.decode_text(streamed.sequence)[60:]


async def test_there_are_no_pages_unless_asked(gateway: Any, http: Any) -> None:
    async with http.get("/web/") as response:
        assert response.status == 404
