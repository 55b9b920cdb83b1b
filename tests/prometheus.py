"""A real Prometheus for tests: from the PATH, or Debian's package, unpacked and not installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stream2llm.models.store import default_cache_dir
from stream2llm.serving.own_http import open_url

_FETCH_TIMEOUT_S = 120.0
_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 20.0
_LISTENS = re.compile(r'msg="Listening on" address=([\d.:]+)')


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where neither is to be had."""
    found = shutil.which(name) or shutil.which(name, path=str(_unpacked() / "usr" / "bin"))
    if found is None:
        pytest.skip(f"no {name} here: install the package prometheus")
    return found


def _unpacked() -> Path:
    folder = default_cache_dir() / "debian-prometheus"
    if not folder.exists() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        _unpack(folder)
    return folder


def _unpack(folder: Path) -> None:
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    options = {"cwd": part, "capture_output": True, "timeout": _FETCH_TIMEOUT_S}
    fetched = subprocess.run(["apt-get", "download", "prometheus"], check=False, **options)  # type: ignore[call-overload]
    if fetched.returncode == 0:
        (package,) = part.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package.name, "."], check=True, **options)  # type: ignore[call-overload]
        part.rename(folder)


class Prometheus:
    """A running one, asked over its HTTP API."""

    def __init__(self, address: str) -> None:
        self._address = address

    def query(self, expr: str) -> list[dict[str, Any]]:
        """An instant query's result: one entry a series, each with its value now."""
        text = urllib.parse.urlencode({"query": expr})
        with open_url(f"http://{self._address}/api/v1/query?{text}", 30) as response:
            return list(json.load(response)["data"]["result"])


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, by its log; the port is one that was free."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while (found := _LISTENS.search(log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found[1]


@contextmanager
def running(controller_address: str, folder: Path) -> Iterator[Prometheus]:
    """Scrapes everything that a cluster's controller lists, each second."""
    config = folder / "prometheus.yml"
    sources = [{"url": f"http://{controller_address}/sd", "refresh_interval": "1s"}]
    job = {"job_name": "stream2llm", "honor_labels": True, "http_sd_configs": sources}
    scrape = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    config.write_text(json.dumps(scrape))  # JSON is YAML
    log = folder / "prometheus.log"
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield Prometheus(_address(process, log))
    finally:
        process.terminate()
        process.wait(_END_TIMEOUT_S)
