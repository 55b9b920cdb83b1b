"""What of one tenant another one can meet: nothing, unless the operator lets them share KV."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from stream2llm.api.errors import Stream2LLMError
from stream2llm.client import AsyncClient, SamplingParameters
from stream2llm.serving.settings.security_options import AuthOptions, SecurityOptions
from tests.credentials import Keys
from tests.router_ring import Ring, a_ring, soon

FOUR = SamplingParameters(max_tokens=4)


def client_of(ring: Ring, keys: Keys, tenant: str) -> AsyncClient:
    return AsyncClient(ring.address.grpc_address, api_key=keys.create(tenant))


@pytest.mark.parametrize(
    ("shared", "salts"),
    [(False, ["acme", "zeta"]), (True, ["", ""]), (("zeta", "other"), ["acme", ""])],
)
async def test_each_worker_gets_the_tenants_salt(
    tiny_model: Path, keys: Keys, shared: bool | tuple[str, ...], salts: list[str]
) -> None:
    """In prefill's request, decode's, and the prefetch ahead of it."""
    security = keys.security(shared_prefix_cache=shared)
    async with a_ring(tiny_model, security=security) as ring:
        ring.prefill.offers_blocks_of = 4
        for tenant in ("acme", "zeta"):
            async with (
                client_of(ring, keys, tenant) as client,
                client.session(prefix="hello ", sampling=FOUR, handover="streamed") as session,
            ):
                await session.append("the quick brown fox")
                await soon(ring.decode.fetch_called.wait())
                ring.decode.fetch_called.clear()
                await session.answer()
        assert [record.open.cache_salt for record in ring.prefill.records] == salts
        assert [request.cache_salt for request in ring.decode.requests] == salts
        assert [each.cache_salt for each in ring.decode.fetch_openings] == salts


async def test_equal_ids_of_two_tenants_are_two_sessions(tiny_model: Path, keys: Keys) -> None:
    async with (
        a_ring(tiny_model, security=keys.security()) as ring,
        client_of(ring, keys, "acme") as first,
        client_of(ring, keys, "zeta") as second,
        first.session(prefix="one ", sampling=FOUR, session_id="same") as of_first,
        second.session(prefix="two ", sampling=FOUR, session_id="same") as of_second,
    ):
        await of_first.append("quick")
        await of_second.append("brown")
        answers = [await each.answer() for each in (of_first, of_second)]
        prompts = [
            ring.encode("one ") + ring.encode("quick"),
            ring.encode("two ") + ring.encode("brown"),
        ]
        for answer, prompt, record in zip(answers, prompts, ring.prefill.records, strict=True):
            assert record.sequence == prompt
            assert list(answer.token_ids) == ring.brain.answer(prompt, 4)
        assert of_first.session_id == of_second.session_id == "same"


async def test_neither_errors_nor_metrics_name_another_tenant(
    tiny_model: Path, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with a_ring(
        tiny_model, security=keys.security(), serve_metrics=True, max_open_sessions=1
    ) as ring:
        async with (
            client_of(ring, keys, "acme-secret") as first,
            client_of(ring, keys, "zeta-secret") as second,
            first.session(prefix="hello ", session_id="acme-id") as session,
        ):
            await session.append("quick")
            told = [await refusal(second), await refusal(second, "zeta-id")]
        assert told[0].reason == "TOO_MANY_SESSIONS"
        said = " ".join(error.message for error in told)
        shown = str([*ring.router.registry.collect()])
        assert "acme" not in said
        assert "secret" not in shown
    # The operator's log has them.
    assert "tenant=zeta-secret" in caplog.text


async def refusal(client: AsyncClient, session_id: str = "") -> Stream2LLMError:
    with pytest.raises(Stream2LLMError) as caught:
        await client.generate("x", session_id=session_id).answer()
    return caught.value


def test_what_is_shared_is_said_by_tenant() -> None:
    auth = AuthOptions(keys_file=Path("/keys"))
    with pytest.raises(ValueError, match="'a b' is no name of a tenant"):
        SecurityOptions(auth=auth, shared_prefix_cache=("a b",))
    with pytest.raises(ValueError, match="without auth there is only one"):
        SecurityOptions(shared_prefix_cache=("a",))
    assert SecurityOptions(auth=auth).cache_salt("a") == "a"
    assert SecurityOptions(auth=auth, shared_prefix_cache=True).cache_salt("a") == ""
    assert SecurityOptions().cache_salt("a") == ""
