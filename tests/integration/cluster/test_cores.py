"""Engines on one machine compute on cores of their own."""

from __future__ import annotations

import os

import psutil
import pytest

from stream2llm.cluster.cluster import Cluster
from tests.cluster_kill import process_of

pytestmark = pytest.mark.cluster("sensitive-1x1")


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_engine_computes_on_the_core_that_it_was_given(cluster: Cluster, role: str) -> None:
    engine = process_of(cluster, role, "EngineCore")
    # The core's number: the model runs in EngineCore's main thread.
    given = psutil.Process(engine).environ()["VLLM_CPU_OMP_THREADS_BIND"]
    assert os.sched_getaffinity(engine) == {int(given)}


def test_prefill_and_decode_share_no_core(cluster: Cluster) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one core")
    engines = (process_of(cluster, role, "EngineCore") for role in ("prefill", "decode"))
    prefill, decode = map(os.sched_getaffinity, engines)
    assert prefill.isdisjoint(decode)
