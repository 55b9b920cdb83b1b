"""What a simulated prefill or mixed worker is set by, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream2llm.serving.settings.worker_options import PrefillOptions


@dataclass(frozen=True, slots=True)
class PrefillSettings:
    """Settings of a worker and its scheduler."""

    num_blocks: int
    block_size: int
    token_budget: int
    num_host_blocks: int = 0
    # Its `offload_pool_gib` is ignored here in favour of `num_host_blocks`.
    options: PrefillOptions = field(default_factory=PrefillOptions)
    # Victims lose everything, as in the paper; ours lose what is needed.
    whole_requests: bool = False
    step_requests: int = 256
    # Whether copies take place while the step computes.
    overlaps: bool = True
    # As in a mixed worker's configuration; None: prefill may fill the steps of answers.
    inter_token_target_ms: int | None = None


@dataclass(slots=True)
class Counters:
    """What happened so far; seconds are virtual, the rest tokens, blocks and numbers.

    Computed tokens are of prompts, and of answers only where they were lost; as production counts.
    """

    steps: int = 0
    busy_s: float = 0.0
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    invalidated_tokens: int = 0
    recomputed_victims: int = 0
    swapped_victims: int = 0
    swapped_blocks: int = 0
