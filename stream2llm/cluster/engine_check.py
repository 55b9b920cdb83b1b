"""Builds each role's engine configuration with vLLM, but no engine: `up --check`.

In separate processes, because vLLM reads its variables when it is imported and leaves
traces in the process that builds a configuration. Takes some ten seconds.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from stream2llm.serving.actor.actor_shell import load, with_model_of_node
from stream2llm.serving.settings.launch import Launch
from stream2llm.serving.settings.worker_spec import WorkerSpec

_BUILDERS = {
    "prefill": "prefill_worker.engine:check_arguments",
    "decode": "decode_worker.engine:check_arguments",
    "mixed": "prefill_worker.engine:check_arguments",
}
# The logger with which torch warns that there is no Triton; CPU engines need none.
TRITON_LOGGER = "torch._library.triton"
NO_GPU_HERE = "vLLM cannot check the values without a GPU here"


class Verdict(NamedTuple):
    """vLLM's result for one role."""

    role: str
    # Why the engine would not start; "" when no reason was found.
    problem: str
    # What could not be checked here, in words; "" when all was.
    left_out: str


def check_engines(launches: Iterable[Launch]) -> list[Verdict]:
    """Returns one verdict per role: replicas of a role have equal arguments."""
    workers = {each.role: each for each in launches if isinstance(each.spec, WorkerSpec)}
    pools = [_pool() for _ in workers]
    try:
        jobs = [
            pool.submit(_verdict, each) for pool, each in zip(pools, workers.values(), strict=True)
        ]
        return [_result(role, job) for role, job in zip(workers, jobs, strict=True)]
    finally:
        for pool in pools:
            pool.shutdown()


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _result(role: str, job: Any) -> Verdict:
    try:
        verdict: Verdict = job.result()
    except BrokenProcessPool as error:
        return Verdict(role, f"the process that checks it ended: {error}", "")
    return verdict


def _verdict(launch: Launch) -> Verdict:
    """Runs in a separate process, before anything has imported vLLM."""
    os.environ.update({"VLLM_LOGGING_LEVEL": "ERROR", **launch.environment})
    silence_triton()
    from vllm.platforms import current_platform

    if (launch.num_gpus and current_platform.is_cpu()) or current_platform.is_unspecified():
        return Verdict(launch.role, "", NO_GPU_HERE)
    try:
        assert isinstance(launch.spec, WorkerSpec)
        load(_BUILDERS[launch.role])(with_model_of_node(launch.spec))
    except (
        Exception
    ) as error:  # vLLM raises various types: pydantic's, ValueError, TypeError, assertions
        return Verdict(launch.role, _in_words(error), "")
    return Verdict(launch.role, "", "")


def silence_triton() -> None:
    """Keeps torch's word that Triton is missing off stderr; what vLLM needs of it, vLLM says."""
    logging.getLogger(TRITON_LOGGER).setLevel(logging.ERROR)


def _in_words(error: Exception) -> str:
    """Returns pydantic's errors without its links; others as they are."""
    details = getattr(error, "errors", None)
    if not callable(details):
        return f"{type(error).__name__}: {error}"
    # One line per field: for a union, pydantic lists an error per member.
    by_field = {item["loc"][:1]: item for item in reversed(details())}
    return "; ".join(_detail(item) for item in reversed(by_field.values()))


def _detail(item: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"][:1])
    message: str = item["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (got {item['input']!r})" if where else message
