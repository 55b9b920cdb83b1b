"""The values that cross the borders of the router's modules. No gRPC, no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from stream2llm.api.delay import DelayReason
from stream2llm.api.handover import HandoverMode
from stream2llm.api.ordering import DocumentOrdering
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.text_options import ControlTokens, OversizedDocuments
from stream2llm.api.token_step import FinishReason, TokenLogprobs
from stream2llm.serving.prefix import Tokens


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """A router that has started."""

    router_id: str
    # host:port
    grpc_address: str
    metrics_address: str


# -- what clients send ------------------------------------------------------------

# Text is tokenized by the router, token ids are used as they are.
Content = str | Tokens


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class PlainTemplate:
    """What stands before and behind the documents."""

    prefix: Content = ""
    suffix: Content = ""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A conversation; with no slot it is complete and becomes the prefix."""

    messages: tuple[ChatMessage, ...]
    # The text that stands for the documents; None: there are none.
    context_slot: str | None


@dataclass(frozen=True, slots=True)
class DocumentInput:
    """A document as an event carries it."""

    document_id: str
    # None names a document sent before.
    content: Content | None
    # How sure the client is that it stays at its place, in [0, 1]; None: not known.
    stays: float | None = None


@dataclass(frozen=True, slots=True)
class OpenEvent:
    """Admits a session."""

    sequence: int
    session_id: str
    model: str
    template: PlainTemplate | ChatTemplate
    sampling: SamplingParameters
    ordering: DocumentOrdering = DocumentOrdering.AS_GIVEN
    # See the proto; None: the router's own.
    ranking_note: str | None = None
    # The whole prompt is here: the seal follows at once, prefill starts there.
    one_shot: bool = False
    # None: as the cluster is set.
    handover: HandoverMode | None = None
    control_tokens: ControlTokens = ControlTokens.NONE
    oversized_documents: OversizedDocuments = OversizedDocuments.FAIL


@dataclass(frozen=True, slots=True)
class AppendEvent:
    """More documents at the end."""

    sequence: int
    documents: tuple[DocumentInput, ...]


@dataclass(frozen=True, slots=True)
class UpdateEvent:
    """The new document list."""

    sequence: int
    documents: tuple[DocumentInput, ...]


@dataclass(frozen=True, slots=True)
class SealEvent:
    """The context is complete."""

    sequence: int
    # Replaces the template's suffix; None keeps it.
    suffix: Content | None = None


ClientEvent = OpenEvent | AppendEvent | UpdateEvent | SealEvent


# -- what clients get -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """The session is admitted."""

    session_id: str
    model: str
    credit_tokens: int


@dataclass(frozen=True, slots=True)
class ProgressFigures:
    """How far the context has come. Counts are of tokens, see the proto."""

    last_sequence: int = 0
    received_tokens: int = 0
    prefilled_tokens: int = 0
    computed_tokens: int = 0
    reused_tokens: int = 0
    invalidated_tokens: int = 0
    credit_tokens: int = 0
    delay: DelayReason | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """More of the answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an answer ended."""

    reason: FinishReason
    stop_string: str = ""
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens, see the proto."""

    prompt_tokens: int
    completion_tokens: int
    computed_tokens: int = 0
    reused_tokens: int = 0
    invalidated_tokens: int = 0
    uncomputed_at_seal_tokens: int = 0
    prefetched_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds by the router's clock; None where it did not happen."""

    ttft_from_open_s: float
    ttft_from_seal_s: float
    first_to_second_token_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a session that succeeded."""

    ending: Ending
    usage: Usage
    timings: Timings
    # See the proto; empty where documents stand as given.
    document_order: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OversizedDocument:
    """A document was longer than the room left for it, see the proto."""

    sequence: int
    index: int
    document_id: str
    action: OversizedDocuments
    reason: str
    room_tokens: int
    kept_tokens: int
    kept_chars: int | None = None
    cut_chars: int | None = None
    cut_tokens: int | None = None


ServerEvent = Accepted | ProgressFigures | Delta | Finished | OversizedDocument
