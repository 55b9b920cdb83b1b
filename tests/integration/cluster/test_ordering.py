"""Stable ordering through the whole cluster: the prompt with its note, and what it saves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from router.ranking_note import DEFAULT_RANKING_NOTE
from stream2llm.client import AsyncClient
from tests.cluster_pool import model_path
from tests.reference_engine import ReferenceEngine
from tests.streams import GREEDY, Stream, collect, play, send_event, until_prefilled

pytestmark = pytest.mark.cluster("sensitive-1x1")

LISTS = (("update", ("a", "b", "c")), ("update", ("d", "a", "c")), ("update", ("e", "d", "a", "c")))
LENGTHS = {"a": 90, "b": 50, "c": 61, "d": 70, "e": 33}
# b leaves: what stood behind a follows in the ranking.
STABLE = Stream("told", LISTS, LENGTHS, laid_out=("a", "d", "c", "e"))
NOTE = DEFAULT_RANKING_NOTE.replace("{ranking}", "4, 2, 1, 3")


async def test_the_answer_is_that_of_one_shot_with_the_note(
    client: AsyncClient, reference: ReferenceEngine
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path("random-llama-sensitive"))
    note = tokenizer.encode(NOTE, add_special_tokens=False)
    body, suffix = STABLE.prompt[: -STABLE.suffix_tokens], STABLE.suffix
    async with client.session(
        prefix=STABLE.prefix, suffix=suffix, sampling=GREEDY, ordering="stable"
    ) as session:
        sent: set[str] = set()
        for index in range(len(LISTS)):
            await send_event(session, STABLE, index, sent)
            await until_prefilled(session, sequence=index + 2)
        outcome = await collect(session.seal())
    prompt = [*body, *note, *suffix]
    assert outcome.token_ids == reference.answer(prompt, 8)
    one_shot = await client.generate(prompt, sampling=GREEDY).answer()
    assert outcome.token_ids == list(one_shot.token_ids)
    assert outcome.finished.usage.prompt_tokens == len(prompt)
    assert outcome.finished.document_order == (2, 1, 3, 0)


async def test_less_is_invalidated(client: AsyncClient) -> None:
    stable = await play(client, STABLE)
    as_given = await play(client, replace(STABLE, name="as given", laid_out=None))
    # Documents behind the first that changes, but for the last token of the context,
    # which is held back: b and c against a, b, c, then d, a, c.
    assert stable.finished.usage.invalidated_tokens == 50 + 61 - 1
    assert as_given.finished.usage.invalidated_tokens == (90 + 50 + 61 - 1) + (70 + 90 + 61 - 1)
