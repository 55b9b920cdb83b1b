"""A trace on a simulated cluster that a cost profile describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cost_profiles.correction import CorrectedCostModel
from cost_profiles.model import CostModel
from cost_profiles.types import CostProfile
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.options import DocumentOrdering
from stream2llm.serving.settings.worker_options import WorkerOptions
from stream2llm.simulator.cluster import Cluster, ClusterSettings
from stream2llm.simulator.decode import DecodeSettings, DecodeWorker, Link
from stream2llm.simulator.prefill import PrefillWorker
from stream2llm.simulator.prefill_settings import PrefillSettings
from stream2llm.simulator.steps import StepLaw, law_of
from stream2llm.simulator.work import Task, not_streamed, task
from stream2llm.workload.records import RunRecord
from stream2llm.workload.traces.read import read_sessions


@dataclass(frozen=True, slots=True)
class Machine:
    """What is simulated; sizes are of one worker."""

    profile: CostProfile
    kv_gib: float
    # None: the budget that the profile was taken with.
    token_budget: int | None = None
    num_prefill: int = 1
    num_decode: int = 0
    # They prefill, and go on with the answers themselves.
    num_mixed: int = 0
    front_s: float = 0.0
    network_gbit_s: float = 100.0
    # Seconds of each read, whatever its size.
    read_overhead_s: float = 0.0
    # Measured while the profile does not say; None: from the profile.
    law: StepLaw | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """On all ranks together."""
        ranks = self.profile.tensor_parallel_size
        return ranks * self.profile.model.kv_bytes_per_token(ranks)

    def num_blocks(self, gib: float) -> int:
        """KV blocks that fit into so much memory of a worker."""
        return int(gib * 2**30 / self.kv_bytes_per_token / self.profile.block_size)


@dataclass(frozen=True, slots=True)
class Way:
    """How it is run."""

    # As in a cluster's configuration, with its defaults; those of leases and digests do not count.
    options: WorkerOptions = field(default_factory=WorkerOptions)
    streams: bool = True
    # In tables; empty: the policy's name.
    label: str = ""
    num_output_tokens: int = 1
    sample_every_s: float | None = 1.0

    @property
    def policy(self) -> str:
        """The scheduling policy."""
        return self.options.prefill.policy


def read_tasks(path: Path, ordering: DocumentOrdering = DocumentOrdering.AS_GIVEN) -> list[Task]:
    """What a trace asks; raises TraceError at a wrong line."""
    return [task(session, documents, ordering) for session, documents in read_sessions(path)]


def play_trace(machine: Machine, way: Way, asked: Sequence[Task], trace: str) -> RunRecord:
    """Runs it; raises InvalidRequestError for what can never fit."""
    law = machine.law or law_of(machine.profile)
    settings = _prefill_settings(machine, way)
    _check_sizes(machine, settings, way, asked)
    costs = CostModel(machine.profile)
    prefilling = [
        PrefillWorker(each, law.seconds, costs, CorrectedCostModel(costs))
        for each in _of_each(machine, settings, way)
    ]
    prefill, mixed = prefilling[: machine.num_prefill], prefilling[machine.num_prefill :]
    decode = [DecodeWorker(_decode_settings(machine, law)) for _ in range(machine.num_decode)]
    cluster = Cluster(
        ClusterSettings(
            machine.front_s, way.num_output_tokens, way.sample_every_s, way.options.handover
        ),
        prefill,
        decode,
        mixed,
    )
    system = way.label or (way.policy if way.streams else "non-streaming")
    return cluster.play(asked if way.streams else not_streamed(asked), system, trace)


def _of_each(machine: Machine, settings: PrefillSettings, way: Way) -> list[PrefillSettings]:
    """The settings of the prefill workers, then of the mixed ones."""
    mixed = replace(settings, inter_token_target_ms=way.options.inter_token_target_ms)
    return [settings] * machine.num_prefill + [mixed] * machine.num_mixed


def _prefill_settings(machine: Machine, way: Way) -> PrefillSettings:
    profile = machine.profile
    return PrefillSettings(
        num_blocks=machine.num_blocks(machine.kv_gib),
        block_size=profile.block_size,
        token_budget=machine.token_budget or profile.recompute.token_budget,
        num_host_blocks=machine.num_blocks(way.options.prefill.offload_pool_gib),
        options=way.options.prefill,
        overlaps=profile.accelerator.name != "cpu",
    )


def _decode_settings(machine: Machine, law: StepLaw) -> DecodeSettings:
    return DecodeSettings(
        num_tokens=machine.num_blocks(machine.kv_gib) * machine.profile.block_size,
        kv_bytes_per_token=machine.kv_bytes_per_token,
        link=Link(machine.network_gbit_s * 1e9 / 8, machine.read_overhead_s),
        law=law,
    )


def _check_sizes(
    machine: Machine, settings: PrefillSettings, way: Way, asked: Sequence[Task]
) -> None:
    """No session is larger than the memory; at a mixed worker its answer counts too."""
    room = settings.num_blocks * settings.block_size
    for each in asked:
        if not each.num_tokens:
            raise InvalidRequestError(f"session {each.name} has no token", field="trace")
        num_sampled = each.num_output_tokens or way.num_output_tokens
        # The last one is not computed.
        num_answer = num_sampled - 1 if machine.num_mixed else 0
        num_tokens = max(each.num_longest_tokens, each.num_tokens + num_answer)
        if num_tokens > room:
            what = "context and answer" if num_answer else "context"
            role = "mixed" if machine.num_mixed else "prefill"
            raise InvalidRequestError(
                f"session {each.name} has {num_tokens:,} tokens of {what}; the KV memory of a "
                f"{role} worker holds {room:,} (--kv-gib)",
                field="kv_gib",
            )
