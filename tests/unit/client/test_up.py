"""`stream2llm up`, `--check` and `down`, as far as nothing is started."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private import services

from stream2llm.cli import check as check_command
from stream2llm.cluster.config_file import parse_config
from stream2llm.cluster.engine_check import NO_GPU_HERE, TRITON_LOGGER, Verdict, silence_triton
from tests.command_lines import check_failed, cli

SMALL = {"env": {"VLLM_CPU_KVCACHE_SPACE": "0"}, "engine": {"num_gpu_blocks_override": 8}}


up = partial(cli, "up")


def a_tree(model: Path, **parts: Any) -> dict[str, Any]:
    small = {"prefill": {**SMALL, "offload_pool_gib": 0}, "decode": SMALL}
    return {"model": str(model), "router": {"port": 0}, **small, **parts}


def a_file(folder: Path, tree: dict[str, Any]) -> str:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_the_default_configuration_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAM2LLM_CACHE", str(tmp_path))
    result = up()
    assert result.exit_code == 1
    assert "model 'smollm2-135m-instruct' is not in the cache" in result.output


def test_up_fails_in_one_line_before_ray_starts(tmp_path: Path, tiny_model: Path) -> None:
    tree = a_tree(tiny_model, decode={"env": {"VLLM_CPU_KVCACHE_SPACE": "0.5"}})
    result = up("--config", a_file(tmp_path, tree))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: decode.env.VLLM_CPU_KVCACHE_SPACE: vLLM cannot take")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""  # not that it is starting


def test_detach_without_a_ray_names_the_option(tmp_path: Path, tiny_model: Path) -> None:
    result = up("--config", a_file(tmp_path, a_tree(tiny_model)), "--detach")
    check_failed(result, 1, "--address auto")


@pytest.mark.parametrize("command", ["up", "down"])
@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), ("a: [1", "not YAML"), ("zzz: 1", "unknown key zzz")],
)
def test_a_bad_file_is_one_line_and_no_traceback(
    command: str, content: str | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "cluster.yaml"
    if content is not None:
        path.write_text(content)
    result = cli(command, "--config", path)
    check_failed(result, 1, said)
    assert len(result.stderr.splitlines()) == 1


def ended(command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what Ray prints would be seen, too."""
    return subprocess.run(
        [sys.executable, "-m", "stream2llm.cli.main", command, *options],
        capture_output=True, text=True, check=False, timeout=120, env=dict(os.environ),
    )  # fmt: skip


@pytest.mark.parametrize("command", ["up", "down"])
def test_no_ray_is_one_line_and_no_traceback(
    command: str, tmp_path: Path, tiny_model: Path
) -> None:
    done = ended(command, "-c", a_file(tmp_path, a_tree(tiny_model)), "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot join a Ray: nothing listens on 127.0.0.1:1")
    assert done.stderr.count("\n") == 1


def test_down_looks_for_the_ray_of_the_file(tmp_path: Path, tiny_model: Path) -> None:
    """On loopback alone, as a Ray of our own is, and where Ray does not look for it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        if services.canonicalize_bootstrap_address(address) == address:
            pytest.skip("this machine has no address beside loopback")
        tree = a_tree(tiny_model, ray={"address": address})
        done = ended("down", "-c", a_file(tmp_path, tree))
    assert done.returncode == 1
    assert f"nothing listens on {address}, which is " in done.stderr
    assert "ends where `stream2llm up` runs" in done.stderr


def test_check_tells_every_problem_and_starts_nothing(tmp_path: Path, tiny_model: Path) -> None:
    tree = a_tree(tiny_model, router={"port": 7001, "metrics_port": 7001}, deterministic=True)
    tree["prefill"] = {"engine": {"max_num_sqs": 4, "num_gpu_blocks_override": 8}}
    tree["prefill"]["policy"] = "no_such_module:lifo"
    result = up("--config", a_file(tmp_path, tree), "--check")
    assert result.exit_code == 1
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert [line.split(":")[0].split(maxsplit=1)[1] for line in failed] == [
        "policies",
        "prefill engine",
        "deterministic answers",
        "ports",
    ]
    assert "prefill.policy: the policy no_such_module:lifo cannot be imported" in result.stdout
    assert "4 of 19 checks failed; nothing was started" in result.stdout


@pytest.mark.parametrize(
    ("verdict", "line", "passes"),
    [
        (Verdict("decode", "", ""), "ok       decode engine, by vLLM", True),
        (Verdict("decode", "dtype: no", ""), "FAILED   decode engine, by vLLM: dtype: no", False),
        (Verdict("decode", "", NO_GPU_HERE), f"left out decode engine, by vLLM: {NO_GPU_HERE}", True),
    ],
)  # fmt: skip
def test_check_ends_with_vllms_word_and_what_would_be_started(
    verdict: Verdict, line: str, passes: bool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(check_command, "check_engines", lambda _: [verdict])
    config = parse_config(a_tree(tiny_model, decode={**SMALL, "replicas": 2}), source="test")
    assert check_command.check(config, said.append) is passes
    assert line in said
    assert [each.split()[0] for each in said if each.startswith("  ")] == [
        "router-0",
        "prefill-0",
        "decode-0",
        "decode-1",
    ]


def test_a_check_is_silent_about_triton_where_torch_warns_of_it() -> None:
    spec = find_spec("torch")  # not imported, which takes seconds
    module = Path(spec.origin).parent.parent / f"{TRITON_LOGGER.replace('.', '/')}.py"
    assert 'logger.warning("Triton not available' in module.read_text()
    assert "logger = logging.getLogger(__name__)" in module.read_text()
    logger = logging.getLogger(TRITON_LOGGER)
    before = logger.level
    try:
        silence_triton()
        assert not logger.isEnabledFor(logging.WARNING)
    finally:
        logger.setLevel(before)


def test_deterministic_is_an_option(tmp_path: Path, tiny_model: Path) -> None:
    result = up("--config", a_file(tmp_path, a_tree(tiny_model)), "--deterministic")
    check_failed(result, 1, "no batch-invariant mode on CPUs")


def test_help_waits_for_neither_vllm_nor_ray() -> None:
    code = (
        "import sys; import stream2llm.cli.main; print({'vllm', 'ray', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
