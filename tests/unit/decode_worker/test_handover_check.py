"""What a decode worker takes for a hand-over."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decode_worker.handover_check import (
    DIGEST_FIELD,
    FIELD,
    MAX_DIGEST_BYTES,
    MAX_JSON_BYTES,
    KnownEngines,
    check_keys,
    parse_handover,
)
from stream2llm.api.errors import InvalidRequestError
from stream2llm.engine.kv_digest import DIGEST_KEY
from tests.refusals import refused

BLOCK_SIZE, NUM_BLOCKS = 32, 100
MISSING = object()


def a_handover(**changes: Any) -> str:
    """What a prefill worker sends of 40 tokens; a key is left out with MISSING."""
    whole = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [[1, NUM_BLOCKS]],
        "remote_engine_id": "engine-1",
        "remote_request_id": "s-a-0123456789abcdef#3",
        "remote_host": "127.0.0.1",
        "remote_port": 20001,
        "tp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": 40,
        "remote_blocks_expiry_time": 12345.5,
        "transfer_mode": "pull",
    }
    return json.dumps({k: v for k, v in {**whole, **changes}.items() if v is not MISSING})


def known(*names: str, capacity: int = 10) -> KnownEngines:
    engines = KnownEngines(capacity)
    for name in names or ("engine-1",):
        engines.learn(
            a_handover(remote_engine_id=name),
            block_size=BLOCK_SIZE,
            num_kv_blocks=NUM_BLOCKS,
        )
    return engines


def check(raw: str, num_blocks: int = 2, num_tokens: int | None = 40) -> dict[str, Any]:
    return known().check(raw, num_blocks, num_tokens)


def test_a_whole_handover_is_taken_as_it_is() -> None:
    after_the_first_token = a_handover(remote_prefill_cached_tokens=32)
    assert check(after_the_first_token) == json.loads(after_the_first_token)
    assert check(a_handover()) == json.loads(a_handover())
    assert check(a_handover(remote_blocks_expiry_time=None))["remote_blocks_expiry_time"] is None


@pytest.mark.parametrize("key", sorted(json.loads(a_handover())))
def test_no_key_may_be_missing_or_of_another_type(key: str) -> None:
    for value in (MISSING, [], {}, [[]], "", [["x"]], [[1.5]], [[True]], -1, 2**64, 10**400):
        with refused(field=f"{FIELD}.{key}"):
            check(a_handover(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_remote_prefill", False),
        ("do_remote_prefill", 1),
        ("do_remote_decode", 0),
        ("transfer_mode", "push"),
        ("remote_engine_id", "engine-2"),  # never shaken hands with
        ("remote_engine_id", "e" * 300),
        ("remote_request_id", "HB:others"),
        ("remote_request_id", "two,ids"),
        ("remote_host", "10.0.0.7"),
        ("remote_port", 22),
        ("remote_port", True),
        ("remote_port", 20001.0),
        ("tp_size", 2),
        ("pp_size", 2),
        ("remote_num_tokens", 0),
        ("remote_num_tokens", 39),
        ("remote_block_ids", [[1, NUM_BLOCKS + 1]]),
        ("remote_block_ids", [[1, -1]]),
        ("remote_block_ids", [[1, 1]]),
        ("remote_block_ids", [[1]]),
        ("remote_block_ids", [[1, 2, 3]]),
        ("remote_block_ids", [[1, 2], [1, 2]]),
        ("remote_block_ids", []),
        ("remote_blocks_expiry_time", "soon"),
        ("remote_blocks_expiry_time", float("nan")),
        ("remote_blocks_expiry_time", float("inf")),
        ("remote_prefill_cached_tokens", -1),
        ("remote_block_size", 16),  # what the connector reads, and prefill does not send
        ("_remote_blocks_processed", True),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(key: str, value: Any) -> None:
    with refused(field=f"{FIELD}.{key}") as caught:
        check(a_handover(**{key: value}))
    assert key in caught.value.message


@pytest.mark.parametrize("block_ids", [[1], [1, 2, 3]])
def test_there_are_as_many_blocks_as_the_tokens_fill(block_ids: list[int]) -> None:
    num_blocks = len(block_ids)
    with pytest.raises(InvalidRequestError, match=f"has {num_blocks} blocks .*, which fill 2"):
        check(a_handover(remote_block_ids=[block_ids]), num_blocks)


def test_blocks_and_tokens_must_be_those_of_the_rpc() -> None:
    with pytest.raises(InvalidRequestError, match=r"num_blocks is 3; .* name 2"):
        check(a_handover(), num_blocks=3)
    with pytest.raises(InvalidRequestError, match=r"remote_num_tokens is 40; .* 41"):
        check(a_handover(), num_tokens=41)
    assert check(a_handover(), num_tokens=None)


@pytest.mark.parametrize(
    "raw",
    ["", "{", "null", "[]", "1", '"x"', "[" * 10_000, "{" * 10_000, '{"a": ' + "9" * 5_000 + "}"],
)
def test_what_is_no_json_object_is_refused(raw: str) -> None:
    with refused(field=FIELD):
        check(raw)


def test_a_handover_is_not_read_beyond_its_limit() -> None:
    with pytest.raises(InvalidRequestError, match="at most"):
        parse_handover(" " * (MAX_JSON_BYTES + 1))


def test_the_oldest_engines_are_forgotten() -> None:
    engines = known("a", "b", "a", "c", capacity=2)
    engines.check(a_handover(remote_engine_id="a"), 2)
    with pytest.raises(InvalidRequestError, match="not shaken hands"):
        engines.check(a_handover(remote_engine_id="b"), 2)


def knowing_a_digest(digest: bytes) -> KnownEngines:
    """The engines known after one whose first hand-over, of two blocks, had this digest."""
    engines = KnownEngines()
    engines.learn(
        a_handover(),
        digest=digest,
        block_size=BLOCK_SIZE,
        num_kv_blocks=NUM_BLOCKS,
    )
    return engines


def test_a_digest_has_as_many_bytes_for_each_block_as_that_engine_gives() -> None:
    engines = knowing_a_digest(bytes(12))
    assert engines.check(a_handover(), 2, 40, b"x" * 12)[DIGEST_KEY] == b"x" * 12
    one_block = a_handover(remote_block_ids=[[7]], remote_num_tokens=32)
    assert engines.check(one_block, 1, 32, b"x" * 6)[DIGEST_KEY] == b"x" * 6
    for digest in (b"", bytes(6), bytes(11), bytes(14)):
        with refused(field=DIGEST_FIELD) as caught:
            engines.check(a_handover(), 2, 40, digest)
        assert "2 blocks of that engine need 12" in caught.value.message


def test_an_engine_without_digests_gives_none_later() -> None:
    assert DIGEST_KEY not in knowing_a_digest(b"").check(a_handover(), 2, 40)
    with pytest.raises(InvalidRequestError):
        knowing_a_digest(b"").check(a_handover(), 2, 40, bytes(12))


@pytest.mark.parametrize("digest", [bytes(1), bytes(3), bytes(6)])
def test_an_engine_whose_digest_cannot_be_is_not_learned(digest: bytes) -> None:
    with refused(field=DIGEST_FIELD):
        knowing_a_digest(digest)


@pytest.mark.parametrize("value", ["x", 1, None, [], b"", bytes(MAX_DIGEST_BYTES + 1)])
def test_a_digest_is_bytes_and_never_in_the_json(value: Any) -> None:
    whole = json.loads(a_handover())
    check_keys({**whole, DIGEST_KEY: b"x"})
    with refused(field=f"{FIELD}.{DIGEST_KEY}"):
        check_keys({**whole, DIGEST_KEY: value})


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "a", "127.0.0.1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("a"), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(json.loads(a_handover()))), _JSON))
def test_any_json_in_any_key_is_refused_or_whole(changes: dict[str, Any]) -> None:
    """Refused is any key's right, but with an error of ours."""
    with suppress(InvalidRequestError):
        params = check(a_handover(**changes))
        assert params.keys() == json.loads(a_handover()).keys()
        assert all(0 <= each <= NUM_BLOCKS for each in params["remote_block_ids"][0])
