"""deploy/docker: a clean Dockerfile, and what it installs is pinned."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from stream2llm.cli.addresses import DEFAULT_CONTROLLER, DEFAULT_ROUTER
from stream2llm.cluster.config_file import default_config, load_config
from tests.command_lines import parse

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy" / "docker" / "Dockerfile"
# Instructions, continued lines joined, comments left out.
TEXT = re.sub(r"^\s*#.*\n", "", FILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
INSTRUCTIONS = [line.split(None, 1) for line in TEXT.splitlines() if line.strip()]


def every(name: str) -> list[str]:
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def exec_form(text: str) -> list[str]:
    return re.findall(r'"([^"]*)"', text)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run([hadolint, FILE], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_everything_that_pip_installs_is_a_pinned_list_or_our_wheel() -> None:
    commands = [part for run in every("RUN") for part in re.split(r"&&|;", run)]
    installs = [part.split() for part in commands if "pip install" in part]
    for words in installs:
        assert "--no-deps" in words
        assert words[-1] in (
            "requirements/torch.txt", "build.txt", "cpu.txt", "gpu.txt", "/wheels/*.whl",
        )  # fmt: skip
    assert len(installs) == 6
    wheels = [part for part in commands if "pip wheel" in part]
    assert all("--no-index" in part and "--no-build-isolation" in part for part in wheels)


def test_lists_are_the_locks_less_what_images_leave_out(tmp_path: Path) -> None:
    (command,) = [run for run in every("RUN") if "not-in-images" in run]
    (tmp_path / "requirements").symlink_to(ROOT / "requirements")
    subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, check=True)
    left_out = {
        line
        for line in (ROOT / "requirements" / "not-in-images.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    for kind in ("cpu", "gpu"):
        lock = (ROOT / "requirements" / f"{kind}.lock").read_text().splitlines()
        names = {line for line in lock if re.match(r"[a-z]", line)}
        wanted = {line for line in names if line.partition("==")[0] not in left_out}
        assert set((tmp_path / f"{kind}.txt").read_text().split()) == wanted
        assert 100 < len(wanted) < len(names)


def test_both_images_run_as_a_user_that_is_not_root() -> None:
    stages = re.split(r"^FROM ", TEXT, flags=re.MULTILINE)
    final = {
        stage.split()[2]: stage
        for stage in stages
        if re.search(r" AS (cpu|cuda)$", stage.split("\n")[0])
    }
    assert final.keys() == {"cpu", "cuda"}
    for stage in final.values():
        (user,) = re.findall(r"^USER (\d+):\d+$", stage, re.MULTILINE)
        assert int(user) > 0
        # Nothing that runs may change what runs.
        assert not re.search(r"COPY .*--chown\S* /opt/stream2llm", stage)


def test_the_commands_parse() -> None:
    (entrypoint,), (command,), (health,) = every("ENTRYPOINT"), every("CMD"), every("HEALTHCHECK")
    whole = exec_form(entrypoint) + exec_form(command)
    assert whole[:3] == ["tini", "--", "stream2llm"]
    parse(whole[3:])
    program, *words = exec_form(health)
    assert program == "stream2llm"
    parse(words)


def test_ports_are_those_of_the_configuration_that_runs_by_default() -> None:
    (exposed,) = every("EXPOSE")
    config = load_config(default_config())
    ports = [config.router.port, config.controller.http_port]
    assert exposed.split() == [str(port) for port in ports]
    # The health check asks the default address.
    of_commands = [address.rpartition(":")[2] for address in (DEFAULT_ROUTER, DEFAULT_CONTROLLER)]
    assert exposed.split() == of_commands


def test_what_a_build_copies_is_let_through_and_holds_the_wheel() -> None:
    rules = (FILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    let_through = {rule[1:].rstrip("/") for rule in rules if rule.startswith("!")}
    assert rules[1] == "*"
    assert all((ROOT / name).exists() for name in let_through)
    pyproject = (ROOT / "pyproject.toml").read_text()
    (packages,) = re.findall(r"^include = \[(.*)\]$", pyproject, re.MULTILINE)
    assert {name.rstrip("*") for name in exec_form(packages)} <= let_through
    assert str(default_config().resolve().relative_to(ROOT)) in let_through
