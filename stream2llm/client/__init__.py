"""The Python client: `AsyncClient`, its synchronous counterpart `Client`, their values and errors."""

from stream2llm.api.errors import (
    EventOrderError,
    IdleTimeoutError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    NotPermittedError,
    OverloadedError,
    Stream2LLMError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from stream2llm.api.events import (
    Accepted,
    Answer,
    DelayReason,
    Event,
    Finished,
    ModelInfo,
    OversizedDocument,
    Progress,
    ServerInfo,
    Timings,
    TokenDelta,
    Usage,
    WorkerInfo,
)
from stream2llm.api.options import ControlTokens, DocumentOrdering, OversizedDocuments
from stream2llm.api.requests import ChatContentPart, ChatMessage, Document, ToolCall
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.api.tls import ClientTls
from stream2llm.api.token_step import FinishReason, Logprob, TokenLogprobs
from stream2llm.client.aio import AsyncClient, connect
from stream2llm.client.inputs import DocumentRef
from stream2llm.client.recovery import SessionRecovery
from stream2llm.client.session import AsyncSession
from stream2llm.client.stream import AnswerStream
from stream2llm.client.sync import Client, Session, Stream, connect_sync

__all__ = [
    # clients
    "AsyncClient",
    "AsyncSession",
    "AnswerStream",
    "connect",
    "Client",
    "Session",
    "Stream",
    "connect_sync",
    "ClientTls",
    "SessionRecovery",
    # what they send
    "ChatMessage",
    "ChatContentPart",
    "ToolCall",
    "Document",
    "DocumentRef",
    "DocumentOrdering",
    "SamplingParameters",
    "StructuredOutput",
    "ControlTokens",
    "OversizedDocuments",
    # what they get
    "Event",
    "Accepted",
    "Progress",
    "OversizedDocument",
    "DelayReason",
    "TokenDelta",
    "Finished",
    "FinishReason",
    "Answer",
    "Usage",
    "Timings",
    "Logprob",
    "TokenLogprobs",
    "ModelInfo",
    "ServerInfo",
    "WorkerInfo",
    # what they raise
    "Stream2LLMError",
    "InvalidRequestError",
    "EventOrderError",
    "NotFoundError",
    "UnauthenticatedError",
    "NotPermittedError",
    "UnsupportedError",
    "OverloadedError",
    "UnavailableError",
    "IdleTimeoutError",
    "InternalError",
]
