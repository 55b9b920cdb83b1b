"""`make demo`: a cluster of its own on this machine, and one question asked three ways.

Takes one to four minutes on two cores. Whatever happens, also Ctrl-C, it ends
every process that it has started. Exit codes: 0 all three answered, 1 something
failed, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from bench.demo_documents import (
    NOISE_TOPICS,
    QUESTION,
    TOPICS,
    CountTokens,
    Way,
    arrivals_of,
    documents_from,
)
from bench.demo_run import Result, Run
from bench.demo_view import View, make_view
from stream2llm.client import AsyncClient, Document, SamplingParameters
from stream2llm.clock import SystemClock
from stream2llm.config import ClusterConfig, load_config
from stream2llm.errors import Stream2LLMError

DEFAULT_CONFIG = Path(__file__).parents[1] / "deploy" / "local-cpu.yaml"
READY_TIMEOUT_S = 150.0
ASK_TIMEOUT_S = 120.0
INTERRUPTED = 130


def demo(
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a running cluster's router; by default one is started."),
    ] = None,
    config: Annotated[
        Path, typer.Option(help="Configuration of the cluster to start.")
    ] = DEFAULT_CONFIG,
    gap_s: Annotated[
        float, typer.Option(min=0, help="Time between two documents, as if each were fetched.")
    ] = 2.0,
) -> None:
    """Start a local cluster and answer one question over real documents three ways.

    Example: python -m bench.demo

    Example: python -m bench.demo --address 127.0.0.1:50051 --gap-s 1
    """
    view = make_view()
    try:
        catch_signals()
        run(view, load_config(config), address, gap_s)
    except KeyboardInterrupt:
        view.end()
        view.say("\ninterrupted; everything that was started is stopped")
        raise typer.Exit(INTERRUPTED) from None
    except (Stream2LLMError, TimeoutError) as error:
        view.end()
        print(f"demo failed: {error or 'it took too long'}", file=sys.stderr)
        raise typer.Exit(1) from None


def run(view: View, config: ClusterConfig, address: str | None, gap_s: float) -> None:
    """Asks the cluster at `address`, or one that lives as long as the question."""
    count_tokens = token_counter(config)
    documents = documents_from(_topics(), TOPICS, count_tokens)
    noise = documents_from(_topics(), NOISE_TOPICS, count_tokens)
    if address is not None:
        asyncio.run(ask_all_ways(address, documents, noise, gap_s, view))
        return
    from stream2llm.cluster import Cluster

    view.say(f"starting a cluster with {config.model_name} on this machine")
    with Cluster.start(config) as cluster:
        catch_signals()  # Ray has put handlers of its own in place
        cluster.wait_ready(READY_TIMEOUT_S, view.say)
        asyncio.run(ask_all_ways(cluster.router_addresses[0], documents, noise, gap_s, view))
        view.say("stopping the cluster")


async def ask_all_ways(
    address: str,
    documents: Sequence[Document],
    noise: Sequence[Document],
    gap_s: float,
    view: View,
) -> list[Result]:
    """The question, three times; raises when one of them fails."""
    run_id = uuid.uuid4().hex[:8]
    _explain(view, documents, gap_s)
    results = []
    async with asyncio.timeout(ASK_TIMEOUT_S), AsyncClient(address) as client:
        # The first steps of an engine are slow; they would count against the first way.
        await client.generate("Hello", sampling=SamplingParameters(max_tokens=4)).answer()
        for way in Way:
            view.begin(way)
            arrivals = arrivals_of(way, documents, noise, gap_s)
            results.append(await Run(way, run_id, SystemClock(), view).answer(client, arrivals))
            view.end()
    view.table(results)
    return results


def _explain(view: View, documents: Sequence[Document], gap_s: float) -> None:
    names = ", ".join(document.id for document in documents)
    view.say(f"question: {QUESTION}")
    view.say(f"documents: Python's help on {names}; complete after {gap_s * len(documents):g} s")
    view.say(
        "Each way begins with a line of its own, so that the prefix cache cannot help it with\n"
        "what an earlier way computed. TTFT from seal counts from the last document's arrival,\n"
        "TTFT from open from the begin of the retrieval. Answers are greedy."
    )


def token_counter(config: ClusterConfig) -> CountTokens:
    """Counts with the model's tokenizer; raises when the model is not here."""
    from tokenizers import Tokenizer

    from stream2llm.model_store import resolve_model

    tokenizer = Tokenizer.from_file(str(resolve_model(config.model) / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def catch_signals() -> None:
    """The first Ctrl-C or SIGTERM interrupts; later ones must not disturb the cleaning up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return dict(topics)


if __name__ == "__main__":
    typer.run(demo)
