"""What a client gets back: frozen values without any gRPC type in them.

A session yields Accepted, then Progress while its context streams in, then,
after the seal, more Progress, TokenDelta and one Finished.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm.delay import DelayReason
from stream2llm.text_options import OversizedDocuments
from stream2llm.token_step import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Accepted:
    """The session is admitted."""

    session_id: str
    model: str
    # Tokens that may be sent before a Progress with more credit comes.
    credit_tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the context has come; all counts are of tokens."""

    # The last event of ours that these figures include; `open` is 1.
    last_sequence: int = 0
    # In the sequence as it stands now.
    received_tokens: int = 0
    # Of those, how many have their KV in memory.
    prefilled_tokens: int = 0
    # Computed for this session so far, recomputation included.
    computed_tokens: int = 0
    # Found in the prefix cache instead of computed.
    reused_tokens: int = 0
    # Had been prefilled and were thrown away by updates.
    invalidated_tokens: int = 0
    credit_tokens: int = 0
    # "kv_memory" or "kv_leased" while the session waits for KV memory on its
    # prefill worker.
    delay: DelayReason | None = None


@dataclass(frozen=True, slots=True)
class OversizedDocument:
    """A document was longer than the room left for it; the session goes on."""

    # The event that brought or named it, as in Progress.last_sequence.
    sequence: int
    # Its place, from 0, in the list of that event.
    index: int
    # May be empty.
    document_id: str
    # "refuse" or "cut".
    action: OversizedDocuments
    # CONTEXT_TOO_LONG or SESSION_TOKENS_EXCEEDED.
    reason: str
    # Most tokens it could have had.
    room_tokens: int
    # Of it, what stands in the context: tokens, and for a text also characters.
    kept_tokens: int
    kept_chars: int | None = None
    # What does not: characters of a text, tokens of everything else.
    cut_chars: int | None = None
    cut_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """More of the answer; token ids may run ahead of the text."""

    text: str
    token_ids: tuple[int, ...] = ()
    # One for each token id when logprobs were asked for, else empty.
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    computed_tokens: int = 0
    reused_tokens: int = 0
    invalidated_tokens: int = 0
    # Still to compute when the seal reached prefill, the suffix included.
    uncomputed_at_seal_tokens: int = 0
    # Of the prompt, at the decode worker before the first token.
    handed_over_ahead_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """In seconds, by the router's clock."""

    ttft_from_open_s: float = 0.0
    ttft_from_seal_s: float = 0.0
    # The hand-over from prefill to decode, as the client sees it; None for an answer
    # of one token.
    first_to_second_token_s: float | None = None
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of an answer that succeeded."""

    reason: FinishReason
    usage: Usage = Usage()
    timings: Timings = Timings()
    stop_string: str | None = None
    stop_token_id: int | None = None
    # With the ordering "stable", for each document in the order in which they stood
    # in the context: its place, from 0, in the list as it was sent.
    document_order: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finished: Finished
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The served model and its limits."""

    model: str
    # Most tokens a prompt and its answer may have together.
    max_model_len: int
    vocab_size: int
    has_chat_template: bool
    max_session_tokens: int
    max_message_bytes: int
    eos_token_ids: tuple[int, ...]
    # Most tokens a prompt may have; 0: the server does not say.
    max_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker as the router sees it."""

    worker_id: str
    role: str
    ready: bool
    num_sessions: int
    num_kv_blocks_held: int
    num_kv_blocks: int
    block_size: int
    metrics_address: str


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The cluster as one router sees it."""

    version: str
    router_id: str
    sessions_by_phase: dict[str, int]
    workers: tuple[WorkerInfo, ...]


Event = Accepted | Progress | OversizedDocument | TokenDelta | Finished
