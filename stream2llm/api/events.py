"""What a client gets: the values that the router fills in and the client hands out.

Each has a message of the same fields (`codec.py`), but for Answer, which the client puts together.
A session yields Accepted, then Progress while its context streams in, then,
after the seal, more Progress, TokenDelta and one Finished for each answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from stream2llm.api.token_step import FinishReason, TokenLogprobs

# What happened to a document that was too long; options.OversizedDocuments can also fail.
DocumentAction = Literal["refuse", "cut"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The session is admitted."""

    session_id: str
    """The session's id, as the server logs it."""
    model: str
    """The served model's name."""
    credit_tokens: int
    """Tokens that may be sent before a Progress with more credit comes."""
    ttft_forecast_ms: int | None = None
    """A warning: sealed now, the session would get its first token so late, which is later than its
    deadline. None: no warning."""
    seal_takes_change: bool = False
    """Whether the seal may bring the last change of the context in one message."""


class DelayReason(StrEnum):
    """A shortage of memory that holds a session up. Busy engines are no delay."""

    KV_MEMORY = "kv_memory"
    """Sessions that rank higher hold it."""
    KV_LEASED = "kv_leased"
    """Hand-overs that no decode worker has fetched yet hold it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the context has come; all counts are of tokens."""

    last_sequence: int = 0
    """The last event of ours that these figures include; `open` is 1."""
    received_tokens: int = 0
    """In the sequence as it stands now."""
    prefilled_tokens: int = 0
    """How many of the received ones have their KV in memory."""
    computed_tokens: int = 0
    """Computed for this session so far, recomputation included."""
    reused_tokens: int = 0
    """Found in the prefix cache instead of computed."""
    invalidated_tokens: int = 0
    """Had been prefilled and were thrown away by updates."""
    credit_tokens: int = 0
    """Tokens that may be sent before a Progress with more credit comes."""
    delay: DelayReason | None = None
    """"kv_memory" or "kv_leased" while the session waits for KV memory on its prefill worker."""
    restarts: int = 0
    """How often the session has been placed at another worker or router, because one was lost, or
    drained."""


@dataclass(frozen=True, slots=True)
class OversizedDocument:
    """A document was longer than the room left for it; the session goes on."""

    sequence: int
    """The event that brought or named it, as in Progress.last_sequence."""
    index: int
    """Its place, from 0, in the list of that event."""
    id: str
    """The document's; may be empty."""
    action: DocumentAction
    """"refuse" or "cut"."""
    reason: str
    """CONTEXT_TOO_LONG or SESSION_TOKENS_EXCEEDED."""
    room_tokens: int
    """Most tokens it could have had."""
    kept_tokens: int
    """Its tokens that stand in the context; 0 when it was refused."""
    kept_chars: int | None = None
    """Characters of a text that stand in the context; None for token ids and ids of documents."""
    cut_chars: int | None = None
    """Characters of a text that do not; None likewise."""
    cut_tokens: int | None = None
    """Tokens that do not; None for a text."""


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """More of the answer; token ids may run ahead of the text."""

    text: str
    """Text; may be empty."""
    token_ids: tuple[int, ...] = ()
    """Token ids; may be empty."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token id when logprobs were asked for, else empty."""
    index: int = 0
    """Which answer it belongs to, from 0 to `n` - 1."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens; the sums over all answers of a session are those of the session. Where a router was lost, only the prompt's and the answer's are of the whole
    session; the others are counted by the router that ended it."""

    prompt_tokens: int = 0
    """Tokens of the sealed prompt; 0 in answers other than that of index 0."""
    completion_tokens: int = 0
    """Tokens of the answer."""
    computed_tokens: int = 0
    """Computed by prefill for this answer, recomputation included."""
    reused_tokens: int = 0
    """Found in the prefix cache instead of computed."""
    invalidated_tokens: int = 0
    """Prefilled, then invalidated by updates."""
    uncomputed_at_seal_tokens: int = 0
    """Still to compute when the seal reached prefill, the suffix included."""
    prefetched_tokens: int = 0
    """Prompt tokens that were at the decode worker before the first token."""


@dataclass(frozen=True, slots=True)
class Timings:
    """In seconds, by the router's clock; where a router was lost, since the session is at the next."""

    ttft_from_open_s: float = 0.0
    """From open to the first token."""
    ttft_from_seal_s: float = 0.0
    """From the seal to the first token."""
    first_to_second_token_s: float | None = None
    """The hand-over from prefill to decode, as the client sees it; None for an answer of one
    token."""
    total_s: float = 0.0
    """From open to the end."""


@dataclass(frozen=True, slots=True)
class Finished:
    """An answer has ended; with the last one the session has succeeded."""

    reason: FinishReason
    """Why the answer ended."""
    usage: Usage = Usage()
    """Counts of tokens."""
    timings: Timings = Timings()
    """Durations."""
    stop_string: str | None = None
    """The stop string that appeared, when one did."""
    stop_token_id: int | None = None
    """The token that ended the answer, when one did."""
    document_order: tuple[int, ...] = ()
    """With the ordering "stable", for each document in the order in which they stood in the
    context: its place, from 0, in the list as it was sent."""
    restarts: int = 0
    """How often the session was placed at another worker or router, because one was lost, or drained.
    A sampled answer may then differ from that of an undisturbed session, also with a seed."""
    index: int = 0
    """Which answer has ended, from 0 to `n` - 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    """Text; may be empty."""
    token_ids: tuple[int, ...]
    """Token ids; may be empty."""
    finished: Finished
    """The answer's last event."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token id when logprobs were asked for, else empty."""

    @property
    def index(self) -> int:
        """Which answer of the session it is, from 0."""
        return self.finished.index


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The served model and its limits."""

    model: str
    """The served model's name."""
    max_model_len: int
    """Most tokens a prompt and its answer may have together."""
    vocab_size: int
    """Number of token ids; valid ids are below it."""
    has_chat_template: bool
    """Whether chat prompts are accepted."""
    max_session_tokens: int
    """Most tokens that a session may send over its whole life."""
    max_message_bytes: int
    """Most bytes of one message."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end an answer unless `ignore_eos` is set."""
    max_prompt_tokens: int = 0
    """Most tokens a prompt may have; 0: the server does not say."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker as the router sees it."""

    worker_id: str
    """Name, for instance "prefill-0"."""
    role: str
    """"prefill", "decode" or "mixed"."""
    ready: bool
    """Whether the router uses it."""
    num_sessions: int
    """Sessions that it holds."""
    num_kv_blocks_held: int
    """KV blocks that a session or a lease holds."""
    num_kv_blocks: int
    """KV blocks in all."""
    block_size: int
    """Tokens in one KV block."""
    metrics_address: str
    """Where its Prometheus metrics are, host:port."""


@dataclass(frozen=True, slots=True)
class TenantInfo:
    """What one tenant uses of a router, or all that the configuration does not name."""

    name: str
    """Its name; "(others)" for all that are not named."""
    num_sessions: int = 0
    """Sessions open now."""
    held_tokens: int = 0
    """Tokens of context that they hold."""
    computed_tokens: int = 0
    """Prompt tokens that prefill has computed for it, invalidated ones included."""
    num_refused: int = 0
    """Sessions and events that its quotas refused."""
    weight: float = 1.0
    """Its share of the work in proportion to those of others."""
    priority: int = 0
    """Tenants of a higher priority are served before those of a lower one."""


@dataclass(frozen=True, slots=True)
class RecoveryInfo:
    """What the loss of workers, and of other routers, has cost the sessions of one router."""

    recomputed_tokens: int = 0
    """Tokens that prefill computed again because the worker that had them was lost."""
    num_recovered: int = 0
    """How often a sealed session has had its next token after a loss."""
    total_s: float = 0.0
    """Seconds from these losses to the next tokens, together."""
    longest_s: float = 0.0
    """The longest of them, in seconds."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The cluster as one router sees it."""

    version: str
    """Version of Stream2LLM."""
    router_id: str
    """The router that answered."""
    sessions_by_phase: dict[str, int]
    """Sessions open at this router, by phase."""
    workers: tuple[WorkerInfo, ...]
    """The workers that it knows."""
    controller_address: str = ""
    """Where the controller listens for HTTP, host:port as its own node sees it; empty: not known."""
    tenants: tuple[TenantInfo, ...] = ()
    """What tenants use of that router."""
    restarts_by_cause: dict[str, int] = field(default_factory=dict)
    """How often it has placed sessions at another worker, by what they had lost; "router_lost" are
    those that it has taken over from another router."""
    recovery: RecoveryInfo = RecoveryInfo()
    """What that has cost."""


Event = Accepted | Progress | OversizedDocument | TokenDelta | Finished
