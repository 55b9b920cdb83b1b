"""A real Prometheus for tests: from the PATH, or Debian's package, unpacked and not installed."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stream2llm.api.credentials import ClientSecurity
from stream2llm.api.tls import ClientTls
from tests import debian
from tools.dashboards.prometheus import Prometheus

_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 20.0
_READY = "Server is ready to receive web requests."
_LISTENS = re.compile(r'msg="Listening on" address=([\d.:]+)')


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where neither is to be had."""
    return debian.program(name, "prometheus")


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
