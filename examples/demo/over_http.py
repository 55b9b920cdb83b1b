"""One question over OpenAI's HTTP API, by curl; the command is shown as one would type it."""

from __future__ import annotations

import json
import shlex
import subprocess

from examples.demo.view import View
from stream2llm.api.errors import UnavailableError
from stream2llm.cluster.config import ClusterConfig

LIMIT_S = 120
_MESSAGES = [{"role": "user", "content": "What is a lake? Answer in one sentence."}]


def ask_over_http(url: str, model: str, view: View) -> None:
    """Shows the command and its answer; raises UnavailableError where it failed."""
    command = curl_command(url, model)
    view.say(f"OpenAI's API, by curl:\n  {shlex.join(command)}")
    view.say(f"  {_output_of(command)}")


def again(config: ClusterConfig) -> str:
    """The two lines that do it again, with a cluster that stays."""
    assert config.gateway is not None
    url = f"http://{config.gateway.host}:{config.gateway.port}/v1"
    curl = shlex.join(curl_command(url, config.model_name))
    return f"Again, in two terminals:\n  .venv/bin/stream2llm up\n  {curl}"


def curl_command(url: str, model: str) -> list[str]:
    """The command for a gateway at `url`."""
    body = {"model": model, "messages": _MESSAGES, "max_tokens": 40, "temperature": 0}
    header = "Content-Type: application/json"
    return ["curl", "-sS", f"{url}/chat/completions", "-H", header, "-d", json.dumps(body)]


def _output_of(command: list[str]) -> str:
    try:
        done = subprocess.run(
            [*command, "--noproxy", "*", "--fail-with-body", "--max-time", str(LIMIT_S)],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "(curl is not installed)"
    if done.returncode:
        raise UnavailableError(f"curl failed: {(done.stdout or done.stderr).strip()}")
    return done.stdout.strip()
