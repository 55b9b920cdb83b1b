"""What one run of a trace on one system came to.

Every runner (a live cluster, a bare engine, a peer, the simulator) makes these
values, and every report reads them, so that systems are compared by one ruler.
Times are seconds after the beginning of the run, real or virtual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

# What becomes of prompt tokens. `SessionRecord` has a count of each, `<kind>_tokens`; summaries,
# their JSON and tables follow from these names.
TOKEN_KINDS = ("computed", "reused", "invalidated", "recomputed")


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One question of the trace."""

    session_id: str
    # When the trace wanted it opened, and when it was.
    due_s: float
    opened_s: float
    # When the trace wanted the last context submitted.
    seal_due_s: float
    # When it was; None: it never came to that.
    sealed_s: float | None
    # When each token of the answer arrived; those of one message share a moment.
    token_times_s: tuple[float, ...]
    # When nothing more would come, whatever the reason.
    ended_s: float
    # Tokens of the sealed context, instruction and question included.
    num_prompt_tokens: int
    # The most that any of its events was submitted after it was due.
    lateness_s: float = 0.0
    # The most of that for which the load generator itself was to blame: the event
    # was due and nothing of the system's held it back.
    generator_lateness_s: float = 0.0
    # Prompt tokens by what became of them (TOKEN_KINDS); None: the runner cannot tell for one session.
    computed_tokens: int | None = None
    reused_tokens: int | None = None
    invalidated_tokens: int | None = None
    recomputed_tokens: int | None = None
    # Why there is no whole answer; empty: there is.
    error: str = ""
    # How often it went on at another worker.
    restarts: int = 0
    # The first token was due so long after the seal; None: no deadline.
    ttft_slo_s: float | None = None

    @property
    def ttft_s(self) -> float | None:
        """From the last context's submission to the first token of the answer."""
        if self.error or self.sealed_s is None or not self.token_times_s:
            return None
        return self.token_times_s[0] - self.sealed_s

    @property
    def longest_wait_s(self) -> float | None:
        """The longest that it waited for a token, from the seal on; None without an answer."""
        if self.error or self.sealed_s is None or not self.token_times_s:
            return None
        times = (self.sealed_s, *self.token_times_s)
        return max(after - before for before, after in pairwise(times))

    @property
    def is_in_time(self) -> bool | None:
        """Whether the answer's first token met its deadline; None: it had none."""
        if self.ttft_slo_s is None:
            return None
        return self.ttft_s is not None and self.ttft_s <= self.ttft_slo_s

    @property
    def ttft_from_open_s(self) -> float | None:
        """From the opening to the first token of the answer."""
        if self.error or not self.token_times_s:
            return None
        return self.token_times_s[0] - self.opened_s


@dataclass(frozen=True, slots=True)
class Sample:
    """The system at one moment; sums over its prefill workers."""

    at_s: float
    # Share of the KV blocks that sessions hold, 0 to 1.
    kv_usage: float
    # Sessions that are open or unanswered, and those of them with tokens to compute.
    num_sessions: int
    num_with_work: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run."""

    # For people and as the name of a line in a plot, for instance "stream2llm fcfs".
    system: str
    trace: str
    # From the beginning to the end of the last session.
    duration_s: float
    sessions: tuple[SessionRecord, ...]
    samples: tuple[Sample, ...] = ()
    # What happened meanwhile, for instance "preemptions_swap".
    counters: Mapping[str, float] = field(default_factory=dict)
    # In what else this run differs from others: load, policy, model, machine.
    settings: Mapping[str, str | float] = field(default_factory=dict)
