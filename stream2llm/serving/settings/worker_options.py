"""Settings of a worker's scheduler: sections of the configuration file, carried as they are.

One value goes from the file through `Launch` and `WorkerSpec` into vLLM's
`additional_config`, and is the same value again in EngineCore. A new setting is a
field here, and a line where it is used. Every default is here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from cost_profiles.decision import Mode
from stream2llm.api.handover import HandoverMode
from stream2llm.serving.settings.frozen_model import FrozenModel
from stream2llm.serving.settings.observability_options import LogFormat
from stream2llm.serving.settings.router_spec import GIB

# What a cluster follows that asks for nothing (docs/benchmark-results.md has the contest).
DEFAULT_POLICY = "srpf"

# One PiB: more is a slip, and its bytes may be more than an integer of C holds.
MAX_GIB = 1024.0**2

# Our key in vLLM's `additional_config`.
_CONFIG_KEY = "stream2llm"

ImportPath = Annotated[str, StringConstraints(pattern=r"^[\w.]+:[\w.]+$")]


class PrefillOptions(FrozenModel):
    """Settings of a prefill worker's scheduler."""

    progress_interval_tokens: int = Field(default=256, ge=1)
    """Computed tokens between two progress reports of a session."""
    policy: str = DEFAULT_POLICY
    """Scheduling policy: which session is served first. A name (docs/operations.md has a table of
    them), or the import path of your own policy (`package.module:name`). `stream2llm policy` changes
    it while the cluster runs."""
    extra_policies: tuple[ImportPath, ...] = ()
    """Import paths of further policies that `stream2llm policy` may switch to. Only they and
    `policy` are ever imported."""
    starvation_guard_steps: int = Field(default=1000, ge=1)
    """Starvation bound: engine steps after which a session with uncomputed tokens is served before
    all others in every fourth step, whatever the policy ranks first."""
    # Large GPUs compute their longest steps in less. For a slow one it is a bound that costs little
    # throughput (docs/benchmark-results.md).
    open_step_target_ms: int = Field(default=160, ge=1)
    """Milliseconds that a step without sealed sessions takes at most, by learned costs, under policies
    that keep sealed sessions apart (`srpf`; one of your own with `keeps_sealed_apart`). A session
    sealed during such a step waits for its end. Such a step has at most 2048 tokens, fewer where
    little work waits, and at least 512, or what four times the fixed part of a step computes."""
    # A step of 8,192 tokens takes 0.13 s on two H200, in which a light client's prompt of 1,000
    # tokens is computed seven times over.
    shared_token_budget: int = Field(default=1024, ge=1)
    """Token budget of a step while several tenants have sessions, or had some within the last 1000
    steps. A session that comes during such a step waits for its end; with one tenant it does not
    count."""
    preemption: Mode = Mode.COST
    """What happens to evicted KV: computed again (`recompute`), copied to the host and back
    (`swap`), or whichever takes less time (`cost`)."""
    offload_pool_gib: float = Field(default=4.0, ge=0, le=MAX_GIB)
    """Host memory for swapped KV of one worker, all its GPUs together. 0 disables swapping. When
    the pool is full, KV is computed again."""
    cost_profile: str | None = None
    """File with measured costs of computing and copying on this machine, or a directory of such
    files. Unset: a shipped profile that fits is searched for."""

    @property
    def offload_pool_bytes(self) -> int:
        """Host memory for swapped KV."""
        return int(self.offload_pool_gib * GIB)

    @property
    def open_step_s(self) -> float:
        """Seconds that a step without sealed sessions takes at most."""
        return self.open_step_target_ms / 1000

    @property
    def import_paths(self) -> tuple[str, ...]:
        """Import paths of all policies that are not built in."""
        paths = (self.policy, *self.extra_policies)
        return tuple(dict.fromkeys(path for path in paths if ":" in path))

    @property
    def swaps(self) -> bool:
        """Whether evicted KV may be copied to the host."""
        return self.preemption is not Mode.RECOMPUTE and self.offload_pool_bytes > 0


class HandoverOptions(FrozenModel):
    """How KV crosses from prefill to decode. The short form `handover: streamed` sets the mode."""

    mode: HandoverMode = "streamed"
    """`streamed`: decode fetches KV while the context streams in. `at_seal`: all of it after the
    first token; also used where decode has no prefix cache. A session may ask for either."""
    lease_s: int = Field(default=10, ge=6)
    """Seconds that prefill keeps KV for a decode worker that shows no sign of life. vLLM's NIXL
    connector refuses less than 6."""
    min_offer_tokens: int = Field(default=256, ge=1)
    """Fewest new tokens in one offer while the session is still computing. Once all its tokens are
    computed, it offers whatever is left."""
    # Small: decode works for others all the time, and a session has seconds for its fetches.
    max_fetch_share: float = Field(default=0.02, gt=0, le=1)
    """Largest share of the time of running answers on decode that KV prefetch may take."""
    kv_digest: bool = True
    """Whether KV is checked after each transfer: prefill samples a few values of every block and
    layer when it computes them, decode compares them with what it has read before any token uses
    it. A difference is recovered from like a lost transfer (docs/handover.md). Engines that split
    layers or tokens (pipeline or context parallelism) need `false`."""

    @model_validator(mode="before")
    @classmethod
    def _mode_alone(cls, raw: Any) -> Any:
        return {"mode": raw} if isinstance(raw, str) else raw


class StructuredOutputOptions(FrozenModel):
    """How structured outputs are compiled."""

    compile_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds that compiling one structured output may take; then its session is refused. XGrammar,
    the default backend, is stopped then."""


class WorkerOptions(FrozenModel):
    """All that an engine's scheduler is set by; one value for both roles."""

    prefill: PrefillOptions = PrefillOptions()
    handover: HandoverOptions = HandoverOptions()
    structured_output: StructuredOutputOptions = StructuredOutputOptions()
    # See `MixedConfig`; None for prefill workers.
    inter_token_target_ms: int | None = None
    # The form of its log.
    logs: LogFormat = "text"
    # Slots of the CPU KV offload pool instead of `offload_pool_gib`: tests fill a few of them.
    offload_pool_blocks: int | None = None

    def with_policy(self, policy: str) -> WorkerOptions:
        """The same, but for the policy; the one before can be chosen again."""
        change = {"policy": policy, "extra_policies": self.prefill.import_paths}
        prefill = self.prefill.model_copy(update=change)
        return self.model_copy(update={"prefill": prefill})

    def to_additional_config(self) -> dict[str, Any]:
        """As vLLM carries it: plain values, which its hash of the configuration takes."""
        return {_CONFIG_KEY: self.model_dump(mode="json")}

    @classmethod
    def from_additional_config(cls, additional_config: Mapping[str, Any] | None) -> WorkerOptions:
        """The inverse; the defaults where it has no such part."""
        return cls.model_validate((additional_config or {}).get(_CONFIG_KEY, {}))
