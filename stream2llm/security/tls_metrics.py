"""What is known of a process's certificates, as metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stream2llm.security.certificates import CertificateStore


class TlsMetrics(Collector):
    """Reads changed files too, so that a scrape shows an expiry without a new connection."""

    def __init__(self, store: CertificateStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """The expiry of each file with certificates, and how often new files were useless."""
        newest = self._store.newest()
        expiry = GaugeMetricFamily(
            "stream2llm_tls_certificate_expiry_timestamp_seconds",
            "Unix time at which the certificates of a file in use expire, by the file's name in"
            " security.tls.",
            labels=("file",),
        )
        for name, moment in newest.expiry.items():
            expiry.add_metric((name,), moment.timestamp())
        yield expiry
        yield CounterMetricFamily(
            "stream2llm_tls_reload_failures_total",
            "Times that changed certificate files could not be used; those before stayed in use.",
            value=self._store.num_failed_reads,
        )
