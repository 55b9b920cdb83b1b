"""The configuration of a cluster: one frozen tree, read once from YAML.

Unknown keys are refused by name, and every default is here. Nothing below the
composition roots reads the environment or a file; they get a part of this tree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stream2llm.errors import InvalidRequestError
from stream2llm.handover import MAX_FETCH_SHARE, HandoverMode
from stream2llm.worker_spec import DEFAULT_POLICY, OPEN_STEP_TOKENS, PolicyName

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RayConfig(_Part):
    """Where the actors live."""

    # "local" starts a Ray of our own and ends it with us; "auto" or an
    # address joins one that runs.
    address: str = "local"
    namespace: str = "stream2llm"
    # Of a Ray of our own. One that we join has its own mode: that of the environment
    # (RAY_AUTH_MODE) goes before this, which then counts only if it is set.
    auth_mode: Literal["disabled", "token"] = "token"
    include_dashboard: bool = False


class RouterLimits(_Part):
    """What one router admits."""

    max_open_sessions: int = Field(default=1024, ge=1)
    # Over the whole life of a session, replaced documents included.
    max_session_tokens: int = Field(default=2_000_000, ge=1)
    max_documents_per_event: int = Field(default=4096, ge=1)
    # Documents with a content, over the whole life of a session.
    max_session_documents: int = Field(default=65_536, ge=1)
    max_message_bytes: int = Field(default=16 * MIB, ge=64 * KIB)
    # A session that is open and gets no event for so long ends.
    input_idle_timeout_s: float = Field(default=60.0, gt=0)
    max_session_duration_s: float = Field(default=3600.0, gt=0)
    # Tokens received but not prefilled yet, above which the router stops
    # reading from the client.
    credit_window_tokens: int = Field(default=65_536, ge=1)


class RouterConfig(_Part):
    """The routers."""

    replicas: int = Field(default=1, ge=1)
    host: str = "127.0.0.1"
    # Of the first router; the others take the following ports. 0: any free port.
    port: int = Field(default=50051, ge=0, le=65535)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    limits: RouterLimits = RouterLimits()
    # How long a drain waits for open sessions.
    drain_timeout_s: float = Field(default=30.0, ge=0)


class WorkerConfig(_Part):
    """The workers of one role."""

    replicas: int = Field(default=1, ge=1)
    # Where workers listen; the address other nodes reach them at. "auto" is the
    # address of the node that Ray places them on.
    host: str = "127.0.0.1"
    num_gpus: float = Field(default=0, ge=0)
    num_cpus: float = Field(default=1, ge=0)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    # vLLM engine arguments, checked by vLLM's own AsyncEngineArgs.
    engine: dict[str, Any] = {}
    # Environment of the actor, for instance VLLM_CPU_KVCACHE_SPACE.
    env: dict[str, str] = {}
    # CPU engines only: cores of each replica as vLLM's
    # VLLM_CPU_OMP_THREADS_BIND wants them, replicas apart by ";" ("0-1;2-3");
    # "auto" gives one core each, in turn.
    cpu_bind: str = "auto"
    start_timeout_s: float = Field(default=600.0, gt=0)


class PrefillConfig(WorkerConfig):
    """The prefill workers."""

    # How often a session's progress is sent on, in computed tokens.
    progress_interval_tokens: int = Field(default=256, ge=1)
    # Who is served first; `stream2llm policy` changes it while the cluster runs.
    policy: PolicyName = DEFAULT_POLICY
    # Engine steps after which a session that still has new tokens is served
    # before all others in every fourth step, whatever the policy says of it.
    patience_steps: int = Field(default=1000, ge=1)
    # Policy srpf: most tokens of a step in which nobody waits for an answer. Whoever is
    # sealed meanwhile waits for its end; much shorter steps cost throughput.
    open_step_tokens: int = Field(default=OPEN_STEP_TOKENS, ge=1)
    # What becomes of evicted KV: it is computed again ("recompute"), copied to
    # the host and back ("swap"), or whichever takes less time ("cost").
    preemption: Literal["recompute", "swap", "cost"] = "cost"
    # Host memory for swapped KV, in GiB a worker, all its GPUs together. 0 is
    # no swapping; when it is full, KV is computed again.
    host_pool_gib: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    # A file with what computing and copying cost on this machine, or a
    # directory of them. Without it, a shipped one that fits is looked for.
    cost_profile: str | None = None


class DecodeConfig(WorkerConfig):
    """The decode workers."""


class HandoverConfig(_Part):
    """How KV crosses from prefill to decode. `handover: streamed` alone sets the mode."""

    # "streamed": decode fetches it ahead while the context streams in. "at_seal":
    # all of it after the first token; also where decode has no prefix cache. A
    # session may ask for either.
    mode: HandoverMode = "streamed"
    # vLLM's NIXL connector refuses less than 6 s.
    lease_s: int = Field(default=10, ge=6)
    # While a session computes on, it offers so many new tokens at a time at
    # least; once it is through, whatever it has.
    min_offer_tokens: int = Field(default=256, ge=1)
    # Of the time of those who decode, the share that fetching ahead may cost them.
    max_fetch_share: float = Field(default=MAX_FETCH_SHARE, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _mode_alone(cls, raw: Any) -> Any:
        return {"mode": raw} if isinstance(raw, str) else raw


class ControllerConfig(_Part):
    """The controller."""

    host: str = "127.0.0.1"
    # HTTP: /sd for Prometheus, /status, /healthz. 0: any free port.
    http_port: int = Field(default=0, ge=0, le=65535)
    health_interval_s: float = Field(default=1.0, gt=0)
    # A worker that gives no answer to a health call for so long is replaced.
    unresponsive_after_s: float = Field(default=60.0, gt=0)
    # A worker that fails to start that often in a row is given up; its role
    # stays short until an operator acts.
    max_start_failures: int = Field(default=3, ge=1)


class ClusterConfig(_Part):
    """Everything."""

    # A name `stream2llm model fetch` knows, or a directory.
    model: str = "smollm2-135m-instruct"
    # The name clients use; the model's own by default.
    served_model_name: str | None = None
    # Answers do not depend on what runs beside them: vLLM's batch-invariant mode, on GPUs
    # (docs/operations.md says what holds without it).
    deterministic: bool = False
    ray: RayConfig = RayConfig()
    controller: ControllerConfig = ControllerConfig()
    router: RouterConfig = RouterConfig()
    prefill: PrefillConfig = PrefillConfig()
    decode: DecodeConfig = DecodeConfig()
    handover: HandoverConfig = HandoverConfig()

    @model_validator(mode="after")
    def _decode_caches_what_it_fetches(self) -> ClusterConfig:
        is_asked_for = "mode" in self.handover.model_fields_set
        if is_asked_for and self.handover.mode == "streamed" and not self._decode_has_cache:
            raise ValueError(
                "handover.mode streamed needs decode.engine.enable_prefix_caching: that cache"
                " holds what is fetched ahead"
            )
        return self

    @property
    def _decode_has_cache(self) -> bool:
        return self.decode.engine.get("enable_prefix_caching") is not False

    @property
    def handover_mode(self) -> HandoverMode:
        """How sessions that ask for nothing hand over."""
        return self.handover.mode if self._decode_has_cache else "at_seal"

    @property
    def model_name(self) -> str:
        """The name clients use for the model."""
        return self.served_model_name or Path(self.model).name


def default_config() -> Path:
    """The file of a cluster on this machine without a GPU, which comes with the package.

    It is deploy/local-cpu.yaml; a checkout has a link to it here.
    """
    return Path(__file__).with_name("local-cpu.yaml")


def load_config(path: Path) -> ClusterConfig:
    """Reads and checks a YAML file; raises InvalidRequestError naming file and key."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise InvalidRequestError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{path}: not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise InvalidRequestError(f"{path}: not YAML: {_problem(error)}") from error
    return parse_config(raw, source=str(path))


def _problem(error: yaml.YAMLError) -> str:
    """In one line, with the place."""
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return f"{getattr(error, 'problem', None) or error}{where}"


def parse_config(raw: Any, *, source: str) -> ClusterConfig:
    """Checks a plain tree; `source` names it in errors."""
    try:
        return ClusterConfig.model_validate(raw)
    except ValidationError as error:
        raise InvalidRequestError(f"{source}: {_describe(error)}") from error


def _describe(error: ValidationError) -> str:
    problems = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "the top level"
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown key {key}")
        else:
            problems.append(f"{key}: {item['msg']} (got {item['input']!r})")
    return "; ".join(problems)
