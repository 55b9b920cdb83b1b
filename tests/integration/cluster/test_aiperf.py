"""AIPerf, in an environment of its own, measures a whole cluster and counts what the cluster counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stream2llm.cluster.cluster import Cluster
from tests.cluster_pool import model_path
from tests.scrape import scrape
from tests.wheels import environment_with, run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.cluster("smollm2-1x1"),
]
MODEL = "smollm2-135m-instruct"
# What it brings is some 140 packages, torch and vLLM not among them.
AIPERF = "aiperf==0.13.0"
NUM_REQUESTS, NUM_OUTPUT_TOKENS = 6, 8
OPTIONS = (
    *("--endpoint-type", "chat", "--streaming", "--use-server-token-count"),
    *("--model", MODEL),
    *("--no-gpu-telemetry", "--no-server-metrics", "--ui-type", "none"),
    *("--workers-max", "1", "--record-processors", "1"),
    *("--concurrency", "3", "--request-count", str(NUM_REQUESTS)),
    *("--isl", "40", "--osl", str(NUM_OUTPUT_TOKENS)),
    *("--extra-inputs", "ignore_eos:true", "--random-seed", "1"),
)


def report(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """What AIPerf writes after a run against the gateway."""
    programs = environment_with(folder / "environment", AIPERF)
    url = cluster.gateway_urls[0].removesuffix("/v1")
    made = folder / "report"
    places = ("--url", url, "--tokenizer", model_path(MODEL), "--artifact-dir", made)
    # Offline, it takes no directory for a tokenizer.
    online = ("env", "--unset=HF_HUB_OFFLINE", "--unset=TRANSFORMERS_OFFLINE")
    run(*online, programs / "aiperf", "profile", *places, *OPTIONS, cwd=folder)
    found: dict[str, Any] = json.loads((made / "profile_export_aiperf.json").read_text())
    return found


def test_aiperf_counts_what_the_metrics_count(cluster: Cluster, tmp_path: Path) -> None:
    before = scrape(cluster)
    told = report(cluster, tmp_path)
    gained = scrape(cluster)
    gained.subtract(before)
    assert (told["is_complete"], told["error_summary"]) == (True, [])
    assert told["request_count"]["avg"] == NUM_REQUESTS
    assert 0 < told["time_to_first_token"]["min"] <= told["request_latency"]["min"]
    assert told["total_osl"]["avg"] == NUM_REQUESTS * NUM_OUTPUT_TOKENS
    assert gained["stream2llm_gateway_requests_total//v1/chat/completions"] == NUM_REQUESTS
    assert gained["stream2llm_output_tokens_total"] == told["total_osl"]["avg"]
    assert gained["stream2llm_input_tokens_total"] == told["total_isl"]["avg"]
