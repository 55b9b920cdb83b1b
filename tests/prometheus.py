"""A real Prometheus for tests: from the PATH, or Debian's package, unpacked and not installed."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stream2llm.api.credentials import ClientSecurity
from stream2llm.api.tls import ClientTls
from stream2llm.serving.http.own_http import open_url
from tests import debian
from tools.dashboards.draw import Series

_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 20.0
_READY = "Server is ready to receive web requests."
_LISTENS = re.compile(r'msg="Listening on" address=([\d.:]+)')


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where neither is to be had."""
    return debian.program(name, ("prometheus",))


class Prometheus:
    """A running one, asked over its HTTP API."""

    def __init__(self, address: str) -> None:
        self._address = address

    def query(self, expr: str) -> list[dict[str, Any]]:
        """An instant query's result: one entry a series, each with its value now."""
        text = urllib.parse.urlencode({"query": expr})
        with open_url(f"http://{self._address}/api/v1/query?{text}", 30) as response:
            return list(json.load(response)["data"]["result"])

    def query_range(self, expr: str, last_s: float, step_s: float = 1.0) -> list[Series]:
        """A range query's result, over the last seconds."""
        now_s = time.time()
        asked = {"query": expr, "start": now_s - last_s, "end": now_s, "step": step_s}
        text = urllib.parse.urlencode(asked)
        with open_url(f"http://{self._address}/api/v1/query_range?{text}", 30) as response:
            found = json.load(response)["data"]["result"]
        return [
            Series(each["metric"], [(at_s, float(value)) for at_s, value in each["values"]])
            for each in found
        ]


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, by its log; the port is one that was free.

    Before the log says that it is ready, it answers 503.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    while _READY not in (said := log.read_text()) or (found := _LISTENS.search(said)) is None:
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return found[1]


def _tls_config(tls: ClientTls) -> dict[str, str]:
    files = {"ca_file": tls.ca, "cert_file": tls.certificate, "key_file": tls.key}
    return {name: str(path) for name, path in files.items() if path is not None}


@contextmanager
def running(
    controller_address: str,
    folder: Path,
    tls: ClientTls | None = None,
    key_file: Path | None = None,
) -> Iterator[Prometheus]:
    """Scrapes everything that a cluster's controller lists, each second."""
    config = folder / "prometheus.yml"
    url = f"{ClientSecurity(tls).scheme}://{controller_address}/sd"
    # As in deploy/prometheus/prometheus.yml; targets have the scheme that /sd says.
    secured: dict[str, Any] = {} if tls is None else {"tls_config": _tls_config(tls)}
    if key_file is not None:
        secured["authorization"] = {"type": "Bearer", "credentials_file": str(key_file)}
    sources = [{"url": url, "refresh_interval": "1s", **secured}]
    job = {"job_name": "stream2llm", "honor_labels": True, "http_sd_configs": sources, **secured}
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
