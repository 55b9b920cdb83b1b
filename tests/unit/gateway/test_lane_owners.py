"""Responses that are kept belong to a tenant, by whichever credentials its clients come."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from stream2llm.security.key_edit import revoke_key
from stream2llm.security.principal import Scope
from tests.credentials import Keys
from tests.gateway_ring import GatewayRing
from tests.issuer import Issuer, security_of, served
from tests.lane_client import LaneClient, user

PREWARM = {"prompt_cache_options": {"prewarm": True}}
TRACE = "0af7651916cd43dd8448eb211c80319c"


def client(gateway: GatewayRing, credentials: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=gateway.base_url, api_key=credentials, max_retries=0)


async def create(sdk: AsyncOpenAI, text: str, **fields: Any) -> Any:
    return await sdk.responses.create(
        model="tiny", input=[user(text)], max_output_tokens=5, **fields
    )


async def prewarm(sdk: AsyncOpenAI, text: str, **fields: Any) -> Any:
    return await create(sdk, text, extra_body=PREWARM, **fields)


async def assert_not_found(sdk: AsyncOpenAI, response_id: str) -> None:
    with pytest.raises(openai.BadRequestError) as lost:
        await create(sdk, "more", previous_response_id=response_id)
    assert lost.value.code == "previous_response_not_found"


async def test_two_keys_of_one_tenant_share_and_another_tenant_finds_nothing(
    make_gateway: Any, keys: Keys
) -> None:
    first, second, other = keys.create("a"), keys.create("a"), keys.create("b")
    gateway = await make_gateway(security=keys.security())
    async with client(gateway, first) as sdk:
        prepared = await prewarm(sdk, "hello")
        await assert_not_found(sdk.with_options(api_key=other), prepared.id)
        for useless in ("wrong", keys.create("a", Scope.READ)):
            with pytest.raises((openai.AuthenticationError, openai.PermissionDeniedError)):
                await create(
                    sdk.with_options(api_key=useless), "more", previous_response_id=prepared.id
                )
        await create(sdk.with_options(api_key=second), "more", previous_response_id=prepared.id)


async def test_sessions_are_opened_with_the_credentials_of_the_request(
    make_gateway: Any, keys: Keys
) -> None:
    first, second = keys.create("a"), keys.create("a")
    gateway = await make_gateway(security=keys.security())
    async with client(gateway, first) as sdk:
        answered = await create(sdk, "hello", store=True)
        revoke_key(keys.path, first.split("_")[1])
        with pytest.raises(openai.AuthenticationError):
            await create(sdk, "more", previous_response_id=answered.id)
        renewed = sdk.with_options(api_key=second)
        assert await create(renewed, "more", previous_response_id=answered.id)
    assert len(gateway.ring.prefill.records) == 2


async def test_a_token_that_was_refreshed_finds_what_the_old_one_has_kept(
    make_gateway: Any,
) -> None:
    issuer = Issuer()
    with served(issuer) as jwks:
        gateway = await make_gateway(security=security_of(jwks))
        old, refreshed = issuer.token(jti="1"), issuer.token(jti="2")
        assert old != refreshed
        async with client(gateway, old) as sdk, sdk.responses.connect() as connection:
            prepared = await prewarm(sdk, "hello")
            kept = await LaneClient(connection).prepare(user("hello"), store=True)
            later = sdk.with_options(api_key=refreshed)
            for previous in (prepared, kept):
                await create(later, "more", previous_response_id=previous.id)
            stranger = sdk.with_options(api_key=issuer.token(tenant="other"))
            await assert_not_found(stranger, prepared.id)


async def test_without_credentials_all_clients_are_one_tenant(gateway: GatewayRing) -> None:
    async with client(gateway, "any") as sdk:
        prepared = await prewarm(sdk, "hello")
        await create(sdk.with_options(api_key="other"), "x", previous_response_id=prepared.id)


async def test_the_trace_of_a_request_goes_on(gateway: GatewayRing) -> None:
    async with client(gateway, "any") as sdk:
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        await create(sdk, "hello", store=True, extra_headers=headers)
    assert TRACE in gateway.ring.record.metadata["traceparent"]
