"""Which connectors a prefill engine gets, and that vLLM takes the configuration."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector

from cost_profiles.decision import Mode
from prefill_worker.kv_transfer import kv_transfer
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import load_config
from stream2llm.cluster.layout import Factories, lay_out
from stream2llm.engine.engine_args import nixl_options
from stream2llm.engine.stats import EngineStats
from stream2llm.serving.settings.worker_options import (
    HandoverOptions,
    PrefillOptions,
    WorkerOptions,
)
from stream2llm.serving.settings.worker_spec import WorkerSpec

DEPLOY = Path(__file__).parents[3] / "deploy"
NIXL = {
    "kv_connector": "NixlConnector",
    "kv_connector_module_path": "prefill_worker.nixl_connector",
    "kv_role": "kv_producer",
    "kv_buffer_device": "cpu",
    "kv_connector_extra_config": {"kv_lease_duration": 7},
    "kv_load_failure_policy": "fail",
}


def a_spec() -> WorkerSpec:
    options = WorkerOptions(handover=HandoverOptions(lease_s=7))
    return WorkerSpec("prefill-0", "prefill", "model", "127.0.0.1", 0, options=options)


def test_without_a_pool_nixl_is_alone() -> None:
    assert kv_transfer(nixl_options(a_spec()), swaps=False) == NIXL


def test_with_a_pool_nixl_keeps_all_its_options() -> None:
    config = kv_transfer(nixl_options(a_spec()), swaps=True)
    nixl, swap = config["kv_connector_extra_config"]["connectors"]
    assert nixl == NIXL
    assert swap["kv_connector"] == "SwapConnector"
    # Read from the parent by vLLM's scheduler.
    assert (config["kv_role"], config["kv_load_failure_policy"]) == ("kv_producer", "fail")


def test_vllm_takes_both_and_the_hybrid_cache_manager_stays_on() -> None:
    config = KVTransferConfig(**kv_transfer(NIXL, swaps=True))
    assert config.has_connector("NixlConnector")
    assert not config.is_kv_consumer
    assert KVConnectorFactory.supports_hma_config(config)
    parent = SimpleNamespace(kv_transfer_config=config)
    children = MultiConnector._get_connector_classes_and_configs(parent)
    assert [each.__name__ for each, _ in children] == ["NixlConnector", "SwapConnector"]
    nixl = children[0][1].kv_transfer_config
    assert nixl.engine_id == config.engine_id
    assert nixl.get_from_extra_config("kv_lease_duration", None) == 7


@pytest.mark.parametrize(
    ("preemption", "pool", "expected"),
    [(Mode.COST, 1, True), (Mode.SWAP, 1, True), (Mode.RECOMPUTE, 1, False), (Mode.SWAP, 0, False)],
)
def test_kv_is_swapped_where_there_is_a_pool_and_a_wish(
    preemption: Mode, pool: int, expected: bool
) -> None:
    assert PrefillOptions(preemption=preemption, offload_pool_gib=pool).swaps is expected


def test_what_the_file_says_is_what_the_scheduler_reads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    prefill = {"preemption": "swap", "offload_pool_gib": 0.5, "cost_profile": "a.json"}
    handover = {"mode": "at_seal", "lease_s": 7, "min_offer_tokens": 8, "max_fetch_share": 0.1}
    config = ClusterConfig.model_validate({"prefill": prefill, "handover": handover})
    specs = [each.spec for each in lay_out(config, tmp_path, {}, Factories())]
    workers = [spec for spec in specs if isinstance(spec, WorkerSpec)]
    assert [spec.role for spec in workers] == ["prefill", "decode"]
    expected = WorkerOptions(
        prefill=PrefillOptions.model_validate(prefill),
        handover=HandoverOptions.model_validate(handover),
    )
    for spec in workers:
        carried = json.loads(
            json.dumps(pickle.loads(pickle.dumps(spec)).options.to_additional_config())
        )
        assert WorkerOptions.from_additional_config(carried) == expected


def test_a_setting_that_the_scheduler_does_not_know_is_refused() -> None:
    with pytest.raises(ValidationError, match="patience"):
        WorkerOptions.from_additional_config({"stream2llm": {"prefill": {"patience": 3}}})


def test_the_configurations_we_ship_say_how_much_memory_swapping_takes() -> None:
    assert load_config(DEPLOY / "local-cpu.yaml").prefill.offload_pool_gib == 1
    assert load_config(DEPLOY / "gpu-h100.yaml").prefill.offload_pool_gib == 32


@pytest.mark.parametrize("name", [None, "NixlPullConnector"])
def test_reads_are_counted_with_one_connector_and_with_several(name: str | None) -> None:
    seen = []
    stats = EngineStats(lambda seconds, num_bytes: seen.append((seconds, num_bytes)))
    reads = {"transfer_duration": [0.5, 0.25], "bytes_transferred": [10, 20], "num_failed": []}
    nested = {name: reads} if name else reads
    stats.record(SimpleNamespace(kv_cache_usage=0.5, kv_connector_stats=nested))
    stats.record(SimpleNamespace(kv_cache_usage=0.25, kv_connector_stats=None))
    assert seen == [(0.5, 10), (0.25, 20)]
    assert stats.kv_usage == 0.25
