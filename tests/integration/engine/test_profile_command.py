"""The whole `stream2llm profile` on a real engine, in as little time as it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytest.importorskip("matplotlib")

from cost_profiles.load import load_profile
from cost_profiles.model import CostModel
from cost_profiles.types import Kind
from stream2llm.models.store import ensure_random_llama

pytestmark = pytest.mark.slow

CONFIG = """
model: {model}
prefill:
  engine:
    dtype: bfloat16
    enforce_eager: true
    block_size: 32
    max_model_len: 4096
    max_num_batched_tokens: 512
    num_gpu_blocks_override: 257
"""


def profile(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stream2llm.cli.main", "profile", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_a_profile_is_measured_written_and_drawn(tmp_path: Path) -> None:
    config, output = tmp_path / "cluster.yaml", tmp_path / "here.json"
    config.write_text(CONFIG.format(model=ensure_random_llama("fast")))
    done = profile("--minutes", "1.5", "--config", config, "--output", output)
    assert done.returncode == 0, done.stderr

    written = load_profile(output)
    assert {written.recompute.provenance.kind, written.swap_in.provenance.kind} == {Kind.MEASURED}
    assert (written.accelerator.name, written.model.name) == ("cpu", "random-llama-fast")
    assert (written.block_size, written.recompute.token_budget) == (32, 512)
    # 256 blocks, a quarter of them in one copy; sessions of seven full steps.
    assert written.swap_out.points[-1].num_blocks == written.swap_in.points[-1].num_blocks == 64
    assert written.recompute.points[-1].end == 7 * 512
    model = CostModel(written)
    assert 0 < model.swap_out_s(8) < model.recompute_s(0, 2048) < 10

    assert output.with_suffix(".png").stat().st_size > 0
    assert "s left] recompute: up to 7 steps of 512 tokens" in done.stderr
    assert "random-llama-fast, tensor parallel 1, on cpu" in done.stdout


def test_an_engine_argument_that_vllm_does_not_know_is_named(tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    model = ensure_random_llama("fast")
    config.write_text(f"model: {model}\nprefill:\n  engine:\n    max_num_bached_tokens: 512\n")
    done = profile("--config", config, "--output", tmp_path / "here.json")
    assert done.returncode == 3
    assert "max_num_bached_tokens" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "here.json").exists()
