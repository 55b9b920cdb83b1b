"""A prefill and a decode engine, real to the NIXL read, each in a process of its own; no Ray.

The engines are stepped on command and have the connectors and schedulers of workers. What
a router would carry goes through pipes. Decode's ranks may overwrite what they have read
(tests/corrupting_worker.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Self

from stream2llm.models.store import ensure_random_llama
from stream2llm.serving.system.ports import pick_port

BLOCK_SIZE = 32
_LEASE_S = 300
_MAX_STEPS = 100_000
NIXL_OPTIONS = {
    "kv_buffer_device": "cpu",
    "kv_connector_extra_config": {"kv_lease_duration": _LEASE_S},
    "kv_load_failure_policy": "fail",
}
_HAND_OVER = {"do_remote_decode": True, "do_remote_prefill": False}


class Answer(NamedTuple):
    """The end of a request at one of the engines."""

    tokens: list[int]
    finish_reason: str
    params: dict[str, Any]


class TwoEngines:
    """Starts both; `with` ends them."""

    def __init__(self, folder: Path, prefill_ranks: int = 1, decode_ranks: int = 1) -> None:
        ensure_random_llama("sensitive")
        self._order = folder / "order"
        self._order.touch()
        variables = {"STREAM2LLM_TEST_CORRUPT": str(self._order)}
        self._prefill = _Process("prefill", prefill_ranks, variables)
        self._decode = _Process("decode", decode_ranks, variables)
        for each in (self._prefill, self._decode):
            each.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._prefill, self._decode):
            each.close()

    def corrupt(self, block: int, layer: int, rank: int) -> None:
        """From now on reads of that rank end with that block overwritten."""
        self._order.write_text(f"{block} {layer} {rank}")

    def corrupt_no_more(self) -> None:
        """From now on reads bring what was sent."""
        self._order.write_text("")

    def prefill(self, name: str, tokens: list[int]) -> Answer:
        """Computes a prompt; returns the first token and the transfer parameters."""
        return self._prefill.call(name, tokens, {"kv_transfer_params": _HAND_OVER})

    def decode(self, name: str, tokens: list[int], first: Answer, num_tokens: int) -> Answer:
        """Reads the prompt's KV and continues the answer; the tokens are those after the first."""
        from decode_worker.fetch_orders import FinalOrder, order_to_wire
        from stream2llm.engine.kv_digest import BlockKeys

        order = FinalOrder(name, BlockKeys(BLOCK_SIZE).to_wire(tokens))
        extra = {**order_to_wire(order), "kv_transfer_params": first.params}
        return self._decode.call(name, [*tokens, *first.tokens], extra, num_tokens)

    def fetch(self, name: str, tokens: list[int], first: Answer) -> Answer:
        """Reads the KV of whole blocks into decode's prefix cache."""
        from decode_worker.fetch_orders import FetchOrder, order_to_wire
        from stream2llm.engine.kv_digest import BlockKeys

        keys = BlockKeys(BLOCK_SIZE).to_wire(tokens)
        order = FetchOrder(name, len(tokens) // BLOCK_SIZE, float("inf"), keys)
        extra = {**order_to_wire(order), "kv_transfer_params": first.params}
        return self._decode.call(name, [*tokens, 0], extra)


class _Process:
    """One engine, and the pipe to it."""

    def __init__(self, role: str, num_ranks: int, variables: dict[str, str]) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        port = pick_port("127.0.0.1", f"{role}/{os.getpid()}")
        variables = {**variables, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
        self._process = context.Process(target=_serve, args=(theirs, role, num_ranks, variables))
        self._process.start()
        theirs.close()

    def call(self, *request: Any) -> Answer:
        self._pipe.send(request)
        answer = self.result()
        assert isinstance(answer, Answer)
        return answer

    def result(self) -> Any:
        result = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, role: str, num_ranks: int, variables: dict[str, str]) -> None:
    """Runs one engine: a request in, the answer out."""
    os.environ.update(variables)
    try:
        engine = _engine(role, num_ranks, variables)
    except Exception as error:
        pipe.send(RuntimeError(f"{role}: {error!r}"))
        return
    pipe.send("ready")
    try:
        while (request := pipe.recv()) is not None:
            try:
                pipe.send(_answer(engine, *request))
            except Exception as error:
                pipe.send(RuntimeError(f"{role}: {error!r}"))
    finally:
        engine.close()


def _engine(role: str, num_ranks: int, variables: dict[str, str]) -> Any:
    from vllm.config import KVTransferConfig

    from prefill_worker.kv_transfer import kv_transfer
    from prefill_worker.local_engine import LocalEngine

    decode = {
        **NIXL_OPTIONS,
        "kv_connector": "FirstTokenNixlConnector",
        "kv_connector_module_path": "decode_worker.connector",
        "kv_role": "kv_consumer",
    }
    of_role: dict[str, Any] = {"kv_transfer_config": KVTransferConfig(**decode)}
    if role == "prefill":
        config = KVTransferConfig(**kv_transfer(NIXL_OPTIONS, swaps=False))
        of_role = {"kv_transfer_config": config}
    else:
        of_role["scheduler_cls"] = "decode_worker.scheduler.DecodeScheduler"
        of_role["worker_cls"] = "tests.corrupting_worker.CorruptingCPUWorker"
        of_role["scheduling_policy"] = "priority"
    cores = sorted(os.sched_getaffinity(0))
    if num_ranks > 1:
        bound = "|".join(str(cores[rank % len(cores)]) for rank in range(num_ranks))
        variables = {**variables, "VLLM_CPU_OMP_THREADS_BIND": bound}
        of_role["tensor_parallel_size"] = num_ranks
    return LocalEngine(
        ensure_random_llama("sensitive"),
        dtype="float32",
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=100,
        max_model_len=1024,
        max_num_batched_tokens=256,
        in_process=num_ranks == 1,
        environment=variables,
        **of_role,
    )


def _answer(
    engine: Any, name: str, tokens: list[int], extra: dict[str, Any], num_tokens: int = 1
) -> Answer:
    """Adds a request and steps until it has ended."""
    engine.add(name, tokens, max_tokens=num_tokens, extra_args=extra, ignore_eos=True)
    found: list[int] = []
    params: dict[str, Any] = {}
    for _ in range(_MAX_STEPS):
        for output in _outputs_of(name, engine.step()):
            found += output.new_token_ids
            params |= output.kv_transfer_params or {}
            if output.finish_reason is not None:
                return Answer(found, str(output.finish_reason), params)
    raise AssertionError(f"{name} did not end")


def _outputs_of(name: str, outputs: Sequence[Any]) -> list[Any]:
    return [output for output in outputs if output.request_id == name]
