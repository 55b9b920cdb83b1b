"""Checks that a hand-over is complete and valid before it reaches an engine. Pure.

The transfer parameters of a Decode, PrefetchKv or ReleaseHandover RPC go through
vLLM's scheduler and NIXL connector into reads of another process's memory. Both
assume that every key is there and fits: a missing key ends the engine inside a
step, and a block id beyond the other side's memory reads bytes that are not KV. So
every key that the stock connector or ours reads is checked here; others are refused.

A hand-over may only name an engine that this worker has shaken hands with. On
connecting, the worker asks that engine for a first hand-over, which gives its side
channel's address and the size of its memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stream2llm.api.errors import InvalidRequestError
from stream2llm.engine.kv_digest import BYTES_PER_VALUE, DIGEST_KEY

FIELD = "handover.kv_transfer_params_json"
DIGEST_FIELD = "handover.kv_digest"
# A million tokens in blocks of 16 need half of that.
MAX_JSON_BYTES = 1024 * 1024
# A million tokens in blocks of 16, of a model with 128 layers.
MAX_DIGEST_BYTES = 16 * 1024 * 1024
MAX_ID_CHARS = 256
MAX_HOST_CHARS = 255
MAX_RANKS = 1024
_MAX_TOKENS = 2**31 - 1
_MAX_CLOCK_S = 1e12
# ":" and "," are separators in NIXL's notifications.
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.#-]+")
_ENGINE_ID = re.compile(r"[A-Za-z0-9_.:-]+")
_HOST = re.compile(r"[A-Za-z0-9_.:%-]+")

Transfer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PrefillEngine:
    """A prefill engine that this worker has shaken hands with."""

    engine_id: str
    host: str
    port: int
    tp_size: int
    dcp_size: int
    pp_size: int
    block_size: int
    # Without vLLM's null block, whose id is 0.
    num_kv_blocks: int
    # Groups of layers, each with its own list of block ids.
    num_groups: int
    # Size of a digest; 0: the engine's hand-overs have none.
    digest_bytes_per_block: int = 0


class KnownEngines:
    """The prefill engines whose hand-overs are accepted; the newest `capacity`."""

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._engines: dict[str, PrefillEngine] = {}

    def learn(
        self,
        raw: str,
        *,
        digest: bytes = b"",
        block_size: int,
        num_kv_blocks: int,
    ) -> Transfer:
        """Returns the transfer parameters of an engine's first hand-over, and remembers the engine.

        The engine's sizes come with the address that the control plane gave.
        """
        params = parse_handover(raw)
        num_blocks = sum(map(len, params["remote_block_ids"]))
        engine = PrefillEngine(
            engine_id=params["remote_engine_id"],
            host=params["remote_host"],
            port=params["remote_port"],
            tp_size=params["tp_size"],
            dcp_size=params["dcp_size"],
            pp_size=params["pp_size"],
            block_size=block_size,
            num_kv_blocks=num_kv_blocks,
            num_groups=len(params["remote_block_ids"]),
            digest_bytes_per_block=len(digest) // num_blocks,
        )
        _check_against(params, engine)
        _check_digest(digest, num_blocks, engine)
        self._engines.pop(engine.engine_id, None)
        self._engines[engine.engine_id] = engine
        while len(self._engines) > self._capacity:
            del self._engines[next(iter(self._engines))]
        return _with_digest(params, digest)

    def check(
        self, raw: str, num_blocks: int, num_tokens: int | None = None, digest: bytes = b""
    ) -> Transfer:
        """Returns the transfer parameters of a hand-over that is to hold `num_blocks` blocks.

        `num_tokens` is the number of tokens whose KV it must be; None where only the
        sender knows it. Raises InvalidRequestError that names what is wrong.
        """
        params = parse_handover(raw)
        engine = self._engines.get(params["remote_engine_id"])
        if engine is None:
            raise _bad(
                "remote_engine_id", "names an engine that this worker has not shaken hands with"
            )
        _check_against(params, engine)
        held = sum(map(len, params["remote_block_ids"]))
        if num_blocks != held:
            raise InvalidRequestError(
                f"num_blocks is {num_blocks}; the transfer parameters name {held} blocks",
                field="handover.num_blocks",
            )
        if num_tokens is not None and params["remote_num_tokens"] != num_tokens:
            held_tokens = params["remote_num_tokens"]
            raise _bad("remote_num_tokens", f"is {held_tokens}; the tokens sent need {num_tokens}")
        _check_digest(digest, held, engine)
        return _with_digest(params, digest)


def parse_handover(raw: str) -> Transfer:
    """Returns vLLM's transfer parameters, each key with the right type and in its range.

    Raises InvalidRequestError that names the key otherwise.
    """
    params = _loaded(raw)
    check_keys(params)
    return params


def check_keys(params: Transfer) -> None:
    """Raises InvalidRequestError that names a missing or unknown key, or one with a bad value."""
    unknown = sorted(map(str, params.keys() - _CHECKS.keys()))
    if unknown:
        raise _bad(unknown[0][:64], "is not a key of a hand-over")
    for key, check in _CHECKS.items():
        if key not in params:
            if key in _OPTIONAL:
                continue
            raise _bad(key, "is missing")
        wrong = check(params[key])
        if wrong:
            raise _bad(key, wrong)


def _loaded(raw: str) -> Transfer:
    if len(raw) > MAX_JSON_BYTES:
        raise InvalidRequestError(
            f"kv_transfer_params_json has {len(raw)} characters; at most {MAX_JSON_BYTES} are taken",
            field=FIELD,
        )
    try:
        params = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error)[:200]) from error
    if not isinstance(params, dict):
        raise _not_json("not an object")
    return params


def _check_against(params: Transfer, engine: PrefillEngine) -> None:
    """Raises InvalidRequestError for what `engine` cannot have handed over."""
    for key, its_own in (
        ("remote_host", engine.host),
        ("remote_port", engine.port),
        ("tp_size", engine.tp_size),
        ("dcp_size", engine.dcp_size),
        ("pp_size", engine.pp_size),
    ):
        if params[key] != its_own:
            raise _bad(key, f"is {params[key]!r}, the engine's is {its_own!r}")
    num_blocks = -(-params["remote_num_tokens"] // (engine.block_size * engine.dcp_size))
    groups = params["remote_block_ids"]
    if len(groups) != engine.num_groups:
        raise _bad("remote_block_ids", f"has {len(groups)} lists, the engine's {engine.num_groups}")
    for block_ids in groups:
        highest = max(block_ids)
        if highest > engine.num_kv_blocks:
            raise _bad("remote_block_ids", f"has {highest}, the last is {engine.num_kv_blocks}")
        if len(block_ids) != num_blocks:
            raise _bad(
                "remote_block_ids",
                f"has {len(block_ids)} blocks for {params['remote_num_tokens']} tokens,"
                f" which fill {num_blocks}",
            )


def _check_digest(digest: bytes, num_blocks: int, engine: PrefillEngine) -> None:
    """Raises InvalidRequestError for a digest that is not of `num_blocks` blocks of `engine`."""
    needed = num_blocks * engine.digest_bytes_per_block
    if len(digest) != needed or engine.digest_bytes_per_block % BYTES_PER_VALUE:
        raise InvalidRequestError(
            f"kv_digest has {len(digest)} bytes; {num_blocks} blocks of that engine need {needed}",
            reason="BAD_HANDOVER",
            field=DIGEST_FIELD,
        )


def _with_digest(params: Transfer, digest: bytes) -> Transfer:
    return {**params, DIGEST_KEY: digest} if digest else params


# -- the keys ------------------------------------------------------------------------
# Each check returns what is wrong with a value, "" for one that is right.
# Each check returns what is wrong with a value, "" for a valid one.
_Check = Callable[[Any], str]


def _must_be(wanted: Any) -> _Check:
    def check(value: Any) -> str:
        # 0 == False, but 0 is no boolean.
        is_right = type(value) is type(wanted) and value == wanted
        return "" if is_right else f"must be {wanted!r}"

    return check


def _integer(lowest: int, highest: int) -> _Check:
    def check(value: Any) -> str:
        if type(value) is not int:  # isinstance(True, int) holds
            return "must be an integer"
        return "" if lowest <= value <= highest else f"must be between {lowest} and {highest}"

    return check


def _text(pattern: re.Pattern[str], max_chars: int) -> _Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= max_chars:
            return f"must be a string of 1 to {max_chars} characters"
        return "" if pattern.fullmatch(value) else f"must match {pattern.pattern}"

    return check


def _blocks(value: Any) -> str:
    if not isinstance(value, list | tuple) or not value:
        return "must be a list with a list for each group of layers"
    for group in value:
        if not isinstance(group, list | tuple) or not group:
            return "must be lists of block ids, none of them empty"
        if any(type(block_id) is not int or block_id < 0 for block_id in group):
            return "must be lists of integers that are not negative"
        if len(set(group)) != len(group):
            return "names a block twice"
    return ""


def _digest(value: Any) -> str:
    is_right = isinstance(value, bytes) and 0 < len(value) <= MAX_DIGEST_BYTES
    return "" if is_right else f"must be 1 to {MAX_DIGEST_BYTES} bytes"


def _deadline(value: Any) -> str:
    if value is None:
        return ""
    # The comparison is false for NaN.
    is_right = type(value) in (int, float) and 0 <= value <= _MAX_CLOCK_S
    return "" if is_right else "must be seconds of a clock, or null"


_CHECKS: Mapping[str, _Check] = {
    "do_remote_prefill": _must_be(True),
    "do_remote_decode": _must_be(False),
    "transfer_mode": _must_be("pull"),
    "remote_engine_id": _text(_ENGINE_ID, MAX_ID_CHARS),
    "remote_request_id": _text(_REQUEST_ID, MAX_ID_CHARS),
    "remote_host": _text(_HOST, MAX_HOST_CHARS),
    "remote_port": _integer(1, 65535),
    "tp_size": _integer(1, MAX_RANKS),
    "dcp_size": _integer(1, MAX_RANKS),
    "pp_size": _integer(1, MAX_RANKS),
    "remote_num_tokens": _integer(1, _MAX_TOKENS),
    "remote_block_ids": _blocks,
    "remote_blocks_expiry_time": _deadline,
    # Hits in prefill's prefix cache; in a hand-over after the first token.
    "remote_prefill_cached_tokens": _integer(0, _MAX_TOKENS),
    # Joins the others in this process; a hand-over has a field of its own for it.
    DIGEST_KEY: _digest,
}
_OPTIONAL = frozenset({"remote_prefill_cached_tokens", DIGEST_KEY})


def _not_json(why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"kv_transfer_params_json is not a JSON object: {why}", reason="BAD_HANDOVER", field=FIELD
    )


def _bad(key: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"{key} {what}", reason="BAD_HANDOVER", field=f"{FIELD}.{key}")
