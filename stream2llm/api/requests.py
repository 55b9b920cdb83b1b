"""What a client sends: the values that the client makes and the router reads.

Each has a message of the same fields (`codec.py`). The client gives every argument its
plain form first (`client/inputs.py`), the router checks what only it can know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol, SupportsIndex

from stream2llm.api.handover import HandoverMode
from stream2llm.api.options import ControlTokens, DocumentOrdering, OversizedDocuments
from stream2llm.api.sampling import SamplingParameters

DEFAULT_CONTEXT_SLOT = "{{context}}"


class TokenArray(Protocol):
    """Integers in one dimension: an array of numpy, a tensor of torch and the like."""

    def __len__(self) -> int: ...

    def tolist(self) -> Any: ...


TokenIds = Sequence[SupportsIndex] | TokenArray
# Text, which the router tokenizes, or token ids, which are used as they are.
Content = str | TokenIds


@dataclass(frozen=True, slots=True)
class Document:
    """One retrieved document; without content it names one sent before."""

    content: Content | None = None
    """Text or token ids; None names a document sent before."""
    id: str = ""
    """The document's name: unique among those with content in one event; an update may list it more
    than once. An appended document needs one only to be named later."""
    stays: float | None = None
    """In an update: how sure you are that it stays at its place, in [0, 1]; a hint to what may be
    handed over ahead of the seal. None: not known."""


@dataclass(frozen=True, slots=True)
class ChatContentPart:
    """A part of a message."""

    text: str
    """Its text."""
    type: str = "text"
    """"text"; another one is refused."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant made."""

    name: str
    """The name of the tool."""
    arguments: str = ""
    """The text of a JSON object; empty: no arguments."""
    id: str = ""
    """The id by which the tool's message refers to it."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    """"system", "user", "assistant", "tool" or "developer"."""
    content: str = ""
    """What is said."""
    parts: tuple[ChatContentPart, ...] = ()
    """What is said, in parts, instead of the content."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The tools that an assistant called."""
    tool_call_id: str = ""
    """The call that a tool's message is the result of."""
    name: str = ""
    """The name of the participant, or of the tool."""
    reasoning: str = ""
    """What an assistant thought before it wrote the content."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The content and the parts, which hold what is said."""
        return (self.content, *(part.text for part in self.parts))


@dataclass(frozen=True, slots=True)
class PlainTemplate:
    """What stands before and behind the documents."""

    prefix: Content = ""
    suffix: Content = ""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A complete conversation."""

    messages: tuple[ChatMessage, ...]
    _: KW_ONLY
    # Each the text of a JSON object.
    tools: tuple[str, ...] = ()
    # The text of a JSON object; empty: none.
    chat_template_kwargs: str = ""
    continue_final_message: bool = False
    # None: unless the answer continues the last message.
    add_generation_prompt: bool | None = None


@dataclass(frozen=True, slots=True)
class ChatTemplate(ChatPrompt):
    """A conversation; exactly one message holds the slot, exactly once."""

    # Empty stands for the default.
    context_slot: str = DEFAULT_CONTEXT_SLOT


@dataclass(frozen=True, slots=True)
class ResumedAnswer:
    """What a client has of an answer that another router began."""

    # All tokens of the answer that were received; the router sends none of them again.
    token_ids: tuple[int, ...] = ()
    # Unicode characters of the answer's text that were received.
    num_chars: int = 0


@dataclass(frozen=True, slots=True)
class ResumedSession:
    """What a client has of a session that was at another router; the answer is that of index 0."""

    token_ids: tuple[int, ...] = ()
    num_chars: int = 0
    # At other workers and routers, this time included.
    restarts: int = 0
    # The answers of index 1, 2, ..., as far as they have begun.
    others: tuple[ResumedAnswer, ...] = ()

    def answer(self, index: int) -> ResumedAnswer:
        """What the client has of that answer."""
        answers = (ResumedAnswer(self.token_ids, self.num_chars), *self.others)
        return answers[index] if index < len(answers) else ResumedAnswer()


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Admits a session and fixes everything but its context."""

    session_id: str = ""
    model: str = ""
    template: PlainTemplate | ChatTemplate | ChatPrompt = PlainTemplate()
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    ordering: DocumentOrdering = DocumentOrdering.AS_GIVEN
    # None: the router's own; empty: the prompt does not say the ranking.
    ranking_note: str | None = None
    # None: as the cluster is set.
    handover: HandoverMode | None = None
    control_tokens: ControlTokens = ControlTokens.NONE
    oversized_documents: OversizedDocuments = OversizedDocuments.FAIL
    # Milliseconds from the seal; None: what the tenant or the model has.
    ttft_slo_ms: int | None = None
    # None: a new session.
    resumed: ResumedSession | None = None
    # Numbered by the client, in the StreamGenerateRequest around the event.
    sequence: int = 0
    # From a GenerateRequest: the seal follows at once, and prefill starts there. Alone has a
    # ChatPrompt.
    one_shot: bool = False


@dataclass(frozen=True, slots=True)
class AppendContext:
    """More documents at the end."""

    documents: tuple[Document, ...]
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class UpdateContext:
    """The new document list."""

    documents: tuple[Document, ...]
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class SealContext:
    """The context is complete."""

    # Replaces the template's suffix; None keeps it.
    suffix: Content | None = None
    # The last change of the context; None: it came before.
    change: AppendContext | UpdateContext | None = None
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One complete prompt; None: a request without one."""

    session_id: str = ""
    model: str = ""
    prompt: Content | ChatPrompt | None = None
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    control_tokens: ControlTokens = ControlTokens.NONE
    ttft_slo_ms: int | None = None


ClientEvent = OpenSession | AppendContext | UpdateContext | SealContext
