"""Every query of every dashboard has data on a cluster under load, asked of a real Prometheus."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from pathlib import Path
from typing import Any

import pytest

from stream2llm.client import AsyncClient, Document
from stream2llm.cluster.cluster import Cluster
from tests import prometheus
from tests.polling import eventually
from tests.streams import CASES, GREEDY, Stream, collect, play, until_prefilled
from tools.dashboards.files import DASHBOARDS
from tools.dashboards.pictures import write_pictures
from tools.dashboards.prometheus import Prometheus, filled_in

# Half a minute beside the cluster that it shares.
pytestmark = [pytest.mark.slow, pytest.mark.cluster("sensitive-1x1")]

PANELS = {f"{board.title}: {panel.title}": panel for board in DASHBOARDS for panel in board.panels}
LENGTHS = {"a": 90, "b": 120, "c": 60, "d": 40}
TIMEOUT_S = 120.0
DRAWN_S = 90.0


def has_data(series: list[dict[str, Any]]) -> bool:
    """Whether there is a figure: a histogram without observations gives NaN."""
    return any(not math.isnan(float(each["value"][1])) for each in series)


async def load(client: AsyncClient, round_number: int) -> None:
    """Sessions of each kind, some of whose KV is prefetched and some of it in vain."""
    streams = [Stream(f"dash-{round_number}-{n}", case, LENGTHS) for n, case in enumerate(CASES)]
    await asyncio.gather(*(play(client, stream) for stream in streams))
    await client.generate(streams[0].prompt, sampling=GREEDY, ttft_slo_ms=3_600_000).answer()
    long = Stream(f"dash-long-{round_number}", (), {"a": 900, "b": 700})
    async with client.session(prefix=long.prefix, sampling=GREEDY, handover="streamed") as session:
        for index, name in enumerate("ab"):
            await session.append(Document(long.document(name), name))
            await until_prefilled(session, index + 2)
        await collect(session.seal(long.suffix))


async def test_every_panel_has_data_and_can_be_drawn(
    cluster: Cluster, client: AsyncClient, tmp_path: Path
) -> None:
    with prometheus.running(cluster.http_address, tmp_path) as server:
        await until_all_have_data(server, client)
        end_s = time.time()
        written = await asyncio.to_thread(
            write_pictures, server, end_s - DRAWN_S, end_s, tmp_path / "figures"
        )
        assert len(written) == len(DASHBOARDS)


@pytest.mark.cluster("mixed-1")
async def test_no_panel_is_empty_where_only_mixed_workers_are(
    cluster: Cluster, client: AsyncClient, tmp_path: Path
) -> None:
    with prometheus.running(cluster.http_address, tmp_path) as server:
        await until_all_have_data(server, client)


async def until_all_have_data(server: Prometheus, client: AsyncClient) -> None:
    rounds = itertools.count()

    async def without_data() -> list[str]:
        await load(client, next(rounds))
        return await asyncio.to_thread(_without_data, server)

    await eventually(without_data, lambda names: not names, TIMEOUT_S)


def _without_data(server: Prometheus) -> list[str]:
    return [
        name
        for name, panel in PANELS.items()
        if not all(has_data(server.query(filled_in(query.expr))) for query in panel.queries)
    ]
