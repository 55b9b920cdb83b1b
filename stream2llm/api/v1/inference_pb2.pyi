import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ControlTokens(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTROL_TOKENS_UNSPECIFIED: _ClassVar[ControlTokens]
    CONTROL_TOKENS_NONE: _ClassVar[ControlTokens]
    CONTROL_TOKENS_TEMPLATE: _ClassVar[ControlTokens]
    CONTROL_TOKENS_ALL: _ClassVar[ControlTokens]

class OversizedDocuments(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OVERSIZED_DOCUMENTS_UNSPECIFIED: _ClassVar[OversizedDocuments]
    OVERSIZED_DOCUMENTS_FAIL: _ClassVar[OversizedDocuments]
    OVERSIZED_DOCUMENTS_REFUSE: _ClassVar[OversizedDocuments]
    OVERSIZED_DOCUMENTS_CUT: _ClassVar[OversizedDocuments]

class DocumentOrdering(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DOCUMENT_ORDERING_UNSPECIFIED: _ClassVar[DocumentOrdering]
    DOCUMENT_ORDERING_AS_GIVEN: _ClassVar[DocumentOrdering]
    DOCUMENT_ORDERING_STABLE: _ClassVar[DocumentOrdering]

class HandoverMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HANDOVER_MODE_UNSPECIFIED: _ClassVar[HandoverMode]
    HANDOVER_MODE_AT_SEAL: _ClassVar[HandoverMode]
    HANDOVER_MODE_STREAMED: _ClassVar[HandoverMode]

class DelayReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DELAY_REASON_UNSPECIFIED: _ClassVar[DelayReason]
    DELAY_REASON_KV_MEMORY: _ClassVar[DelayReason]
    DELAY_REASON_KV_LEASED: _ClassVar[DelayReason]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP_TOKEN: _ClassVar[FinishReason]
    FINISH_REASON_STOP_STRING: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
CONTROL_TOKENS_UNSPECIFIED: ControlTokens
CONTROL_TOKENS_NONE: ControlTokens
CONTROL_TOKENS_TEMPLATE: ControlTokens
CONTROL_TOKENS_ALL: ControlTokens
OVERSIZED_DOCUMENTS_UNSPECIFIED: OversizedDocuments
OVERSIZED_DOCUMENTS_FAIL: OversizedDocuments
OVERSIZED_DOCUMENTS_REFUSE: OversizedDocuments
OVERSIZED_DOCUMENTS_CUT: OversizedDocuments
DOCUMENT_ORDERING_UNSPECIFIED: DocumentOrdering
DOCUMENT_ORDERING_AS_GIVEN: DocumentOrdering
DOCUMENT_ORDERING_STABLE: DocumentOrdering
HANDOVER_MODE_UNSPECIFIED: HandoverMode
HANDOVER_MODE_AT_SEAL: HandoverMode
HANDOVER_MODE_STREAMED: HandoverMode
DELAY_REASON_UNSPECIFIED: DelayReason
DELAY_REASON_KV_MEMORY: DelayReason
DELAY_REASON_KV_LEASED: DelayReason
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP_TOKEN: FinishReason
FINISH_REASON_STOP_STRING: FinishReason
FINISH_REASON_LENGTH: FinishReason

class StreamGenerateRequest(_message.Message):
    __slots__ = ("sequence", "open", "append", "update", "seal")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    open: OpenSession
    append: AppendContext
    update: UpdateContext
    seal: SealContext
    def __init__(self, sequence: _Optional[int] = ..., open: _Optional[_Union[OpenSession, _Mapping]] = ..., append: _Optional[_Union[AppendContext, _Mapping]] = ..., update: _Optional[_Union[UpdateContext, _Mapping]] = ..., seal: _Optional[_Union[SealContext, _Mapping]] = ...) -> None: ...

class StreamGenerateResponse(_message.Message):
    __slots__ = ("accepted", "progress", "delta", "finished", "oversized_document")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    OVERSIZED_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    accepted: SessionAccepted
    progress: Progress
    delta: TokenDelta
    finished: GenerationFinished
    oversized_document: OversizedDocument
    def __init__(self, accepted: _Optional[_Union[SessionAccepted, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., delta: _Optional[_Union[TokenDelta, _Mapping]] = ..., finished: _Optional[_Union[GenerationFinished, _Mapping]] = ..., oversized_document: _Optional[_Union[OversizedDocument, _Mapping]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("session_id", "model", "text", "token_ids", "chat", "sampling", "control_tokens", "ttft_slo_ms")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CONTROL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TTFT_SLO_MS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    text: str
    token_ids: TokenIds
    chat: ChatPrompt
    sampling: SamplingParameters
    control_tokens: ControlTokens
    ttft_slo_ms: int
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[ChatPrompt, _Mapping]] = ..., sampling: _Optional[_Union[SamplingParameters, _Mapping]] = ..., control_tokens: _Optional[_Union[ControlTokens, str]] = ..., ttft_slo_ms: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("accepted", "progress", "delta", "finished")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    accepted: SessionAccepted
    progress: Progress
    delta: TokenDelta
    finished: GenerationFinished
    def __init__(self, accepted: _Optional[_Union[SessionAccepted, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., delta: _Optional[_Union[TokenDelta, _Mapping]] = ..., finished: _Optional[_Union[GenerationFinished, _Mapping]] = ...) -> None: ...

class GetModelInfoRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelInfoResponse(_message.Message):
    __slots__ = ("model", "max_model_len", "vocab_size", "has_chat_template", "max_session_tokens", "max_message_bytes", "eos_token_ids", "max_prompt_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    max_model_len: int
    vocab_size: int
    has_chat_template: bool
    max_session_tokens: int
    max_message_bytes: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    max_prompt_tokens: int
    def __init__(self, model: _Optional[str] = ..., max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ..., has_chat_template: bool = ..., max_session_tokens: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., max_prompt_tokens: _Optional[int] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "router_id", "sessions_by_phase", "workers", "controller_address", "tenants", "restarts_by_cause", "recovery")
    class SessionsByPhaseEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RestartsByCauseEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_BY_PHASE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_BY_CAUSE_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_FIELD_NUMBER: _ClassVar[int]
    version: str
    router_id: str
    sessions_by_phase: _containers.ScalarMap[str, int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerInfo]
    controller_address: str
    tenants: _containers.RepeatedCompositeFieldContainer[TenantInfo]
    restarts_by_cause: _containers.ScalarMap[str, int]
    recovery: RecoveryInfo
    def __init__(self, version: _Optional[str] = ..., router_id: _Optional[str] = ..., sessions_by_phase: _Optional[_Mapping[str, int]] = ..., workers: _Optional[_Iterable[_Union[WorkerInfo, _Mapping]]] = ..., controller_address: _Optional[str] = ..., tenants: _Optional[_Iterable[_Union[TenantInfo, _Mapping]]] = ..., restarts_by_cause: _Optional[_Mapping[str, int]] = ..., recovery: _Optional[_Union[RecoveryInfo, _Mapping]] = ...) -> None: ...

class RecoveryInfo(_message.Message):
    __slots__ = ("recomputed_tokens", "num_recovered", "total", "longest")
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_RECOVERED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LONGEST_FIELD_NUMBER: _ClassVar[int]
    recomputed_tokens: int
    num_recovered: int
    total: _duration_pb2.Duration
    longest: _duration_pb2.Duration
    def __init__(self, recomputed_tokens: _Optional[int] = ..., num_recovered: _Optional[int] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., longest: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TenantInfo(_message.Message):
    __slots__ = ("name", "num_sessions", "held_tokens", "computed_tokens", "num_refused", "weight", "priority")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    HELD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_sessions: int
    held_tokens: int
    computed_tokens: int
    num_refused: int
    weight: float
    priority: int
    def __init__(self, name: _Optional[str] = ..., num_sessions: _Optional[int] = ..., held_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., num_refused: _Optional[int] = ..., weight: _Optional[float] = ..., priority: _Optional[int] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("worker_id", "role", "ready", "num_sessions", "num_kv_blocks_held", "num_kv_blocks", "block_size", "metrics_address")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_BLOCKS_HELD_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    role: str
    ready: bool
    num_sessions: int
    num_kv_blocks_held: int
    num_kv_blocks: int
    block_size: int
    metrics_address: str
    def __init__(self, worker_id: _Optional[str] = ..., role: _Optional[str] = ..., ready: bool = ..., num_sessions: _Optional[int] = ..., num_kv_blocks_held: _Optional[int] = ..., num_kv_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., metrics_address: _Optional[str] = ...) -> None: ...

class OpenSession(_message.Message):
    __slots__ = ("session_id", "model", "plain", "chat", "sampling", "ordering", "ranking_note", "handover", "control_tokens", "oversized_documents", "ttft_slo_ms", "resumed")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PLAIN_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ORDERING_FIELD_NUMBER: _ClassVar[int]
    RANKING_NOTE_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    CONTROL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OVERSIZED_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TTFT_SLO_MS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    plain: PlainTemplate
    chat: ChatTemplate
    sampling: SamplingParameters
    ordering: DocumentOrdering
    ranking_note: str
    handover: HandoverMode
    control_tokens: ControlTokens
    oversized_documents: OversizedDocuments
    ttft_slo_ms: int
    resumed: ResumedSession
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., plain: _Optional[_Union[PlainTemplate, _Mapping]] = ..., chat: _Optional[_Union[ChatTemplate, _Mapping]] = ..., sampling: _Optional[_Union[SamplingParameters, _Mapping]] = ..., ordering: _Optional[_Union[DocumentOrdering, str]] = ..., ranking_note: _Optional[str] = ..., handover: _Optional[_Union[HandoverMode, str]] = ..., control_tokens: _Optional[_Union[ControlTokens, str]] = ..., oversized_documents: _Optional[_Union[OversizedDocuments, str]] = ..., ttft_slo_ms: _Optional[int] = ..., resumed: _Optional[_Union[ResumedSession, _Mapping]] = ...) -> None: ...

class ResumedSession(_message.Message):
    __slots__ = ("token_ids", "num_chars", "restarts", "others")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_CHARS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_chars: int
    restarts: int
    others: _containers.RepeatedCompositeFieldContainer[ResumedAnswer]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., num_chars: _Optional[int] = ..., restarts: _Optional[int] = ..., others: _Optional[_Iterable[_Union[ResumedAnswer, _Mapping]]] = ...) -> None: ...

class ResumedAnswer(_message.Message):
    __slots__ = ("token_ids", "num_chars")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_CHARS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_chars: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., num_chars: _Optional[int] = ...) -> None: ...

class OversizedDocument(_message.Message):
    __slots__ = ("sequence", "index", "id", "action", "reason", "room_tokens", "kept_tokens", "kept_chars", "cut_chars", "cut_tokens")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROOM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEPT_CHARS_FIELD_NUMBER: _ClassVar[int]
    CUT_CHARS_FIELD_NUMBER: _ClassVar[int]
    CUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    index: int
    id: str
    action: OversizedDocuments
    reason: str
    room_tokens: int
    kept_tokens: int
    kept_chars: int
    cut_chars: int
    cut_tokens: int
    def __init__(self, sequence: _Optional[int] = ..., index: _Optional[int] = ..., id: _Optional[str] = ..., action: _Optional[_Union[OversizedDocuments, str]] = ..., reason: _Optional[str] = ..., room_tokens: _Optional[int] = ..., kept_tokens: _Optional[int] = ..., kept_chars: _Optional[int] = ..., cut_chars: _Optional[int] = ..., cut_tokens: _Optional[int] = ...) -> None: ...

class PlainTemplate(_message.Message):
    __slots__ = ("prefix", "suffix")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    prefix: Content
    suffix: Content
    def __init__(self, prefix: _Optional[_Union[Content, _Mapping]] = ..., suffix: _Optional[_Union[Content, _Mapping]] = ...) -> None: ...

class ChatTemplate(_message.Message):
    __slots__ = ("messages", "context_slot", "tools", "chat_template_kwargs", "continue_final_message", "add_generation_prompt")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_SLOT_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_KWARGS_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ADD_GENERATION_PROMPT_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    context_slot: str
    tools: _containers.RepeatedScalarFieldContainer[str]
    chat_template_kwargs: str
    continue_final_message: bool
    add_generation_prompt: bool
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., context_slot: _Optional[str] = ..., tools: _Optional[_Iterable[str]] = ..., chat_template_kwargs: _Optional[str] = ..., continue_final_message: bool = ..., add_generation_prompt: bool = ...) -> None: ...

class ChatPrompt(_message.Message):
    __slots__ = ("messages", "tools", "chat_template_kwargs", "continue_final_message", "add_generation_prompt")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_KWARGS_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ADD_GENERATION_PROMPT_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    tools: _containers.RepeatedScalarFieldContainer[str]
    chat_template_kwargs: str
    continue_final_message: bool
    add_generation_prompt: bool
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., tools: _Optional[_Iterable[str]] = ..., chat_template_kwargs: _Optional[str] = ..., continue_final_message: bool = ..., add_generation_prompt: bool = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content", "parts", "tool_calls", "tool_call_id", "name", "reasoning")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    parts: _containers.RepeatedCompositeFieldContainer[ChatContentPart]
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCall]
    tool_call_id: str
    name: str
    reasoning: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[ChatContentPart, _Mapping]]] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCall, _Mapping]]] = ..., tool_call_id: _Optional[str] = ..., name: _Optional[str] = ..., reasoning: _Optional[str] = ...) -> None: ...

class ChatContentPart(_message.Message):
    __slots__ = ("type", "text")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    type: str
    text: str
    def __init__(self, type: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class ToolCall(_message.Message):
    __slots__ = ("id", "name", "arguments")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    arguments: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., arguments: _Optional[str] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Document(_message.Message):
    __slots__ = ("id", "text", "token_ids", "stays")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    STAYS_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    token_ids: TokenIds
    stays: float
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., stays: _Optional[float] = ...) -> None: ...

class AppendContext(_message.Message):
    __slots__ = ("documents",)
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    def __init__(self, documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ...) -> None: ...

class UpdateContext(_message.Message):
    __slots__ = ("documents",)
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    def __init__(self, documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ...) -> None: ...

class SealContext(_message.Message):
    __slots__ = ("suffix", "append", "update")
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    suffix: Content
    append: AppendContext
    update: UpdateContext
    def __init__(self, suffix: _Optional[_Union[Content, _Mapping]] = ..., append: _Optional[_Union[AppendContext, _Mapping]] = ..., update: _Optional[_Union[UpdateContext, _Mapping]] = ...) -> None: ...

class SamplingParameters(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop_strings", "stop_token_ids", "presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs", "ignore_eos", "min_tokens", "min_p", "logit_bias", "bad_words", "include_stop_string", "skip_special_tokens", "truncate_prompt_tokens", "n", "structured_output")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    BAD_WORDS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STOP_STRING_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop_strings: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logprobs: int
    ignore_eos: bool
    min_tokens: int
    min_p: float
    logit_bias: _containers.ScalarMap[int, float]
    bad_words: _containers.RepeatedCompositeFieldContainer[Content]
    include_stop_string: bool
    skip_special_tokens: bool
    truncate_prompt_tokens: int
    n: int
    structured_output: StructuredOutput
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., stop_strings: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logprobs: _Optional[int] = ..., ignore_eos: bool = ..., min_tokens: _Optional[int] = ..., min_p: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., bad_words: _Optional[_Iterable[_Union[Content, _Mapping]]] = ..., include_stop_string: bool = ..., skip_special_tokens: bool = ..., truncate_prompt_tokens: _Optional[int] = ..., n: _Optional[int] = ..., structured_output: _Optional[_Union[StructuredOutput, _Mapping]] = ...) -> None: ...

class StructuredOutput(_message.Message):
    __slots__ = ("json_schema", "json_object", "regex", "choices", "grammar", "structural_tag")
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    JSON_OBJECT_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    STRUCTURAL_TAG_FIELD_NUMBER: _ClassVar[int]
    json_schema: str
    json_object: bool
    regex: str
    choices: _containers.RepeatedScalarFieldContainer[str]
    grammar: str
    structural_tag: str
    def __init__(self, json_schema: _Optional[str] = ..., json_object: bool = ..., regex: _Optional[str] = ..., choices: _Optional[_Iterable[str]] = ..., grammar: _Optional[str] = ..., structural_tag: _Optional[str] = ...) -> None: ...

class SessionAccepted(_message.Message):
    __slots__ = ("session_id", "model", "credit_tokens", "ttft_forecast_ms", "seal_takes_change")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CREDIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TTFT_FORECAST_MS_FIELD_NUMBER: _ClassVar[int]
    SEAL_TAKES_CHANGE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    credit_tokens: int
    ttft_forecast_ms: int
    seal_takes_change: bool
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., credit_tokens: _Optional[int] = ..., ttft_forecast_ms: _Optional[int] = ..., seal_takes_change: bool = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("last_sequence", "received_tokens", "prefilled_tokens", "computed_tokens", "reused_tokens", "invalidated_tokens", "credit_tokens", "delay", "restarts")
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INVALIDATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    last_sequence: int
    received_tokens: int
    prefilled_tokens: int
    computed_tokens: int
    reused_tokens: int
    invalidated_tokens: int
    credit_tokens: int
    delay: DelayReason
    restarts: int
    def __init__(self, last_sequence: _Optional[int] = ..., received_tokens: _Optional[int] = ..., prefilled_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., reused_tokens: _Optional[int] = ..., invalidated_tokens: _Optional[int] = ..., credit_tokens: _Optional[int] = ..., delay: _Optional[_Union[DelayReason, str]] = ..., restarts: _Optional[int] = ...) -> None: ...

class TokenDelta(_message.Message):
    __slots__ = ("text", "token_ids", "logprobs", "index")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    index: int
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., index: _Optional[int] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("sampled", "top")
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    sampled: Logprob
    top: _containers.RepeatedCompositeFieldContainer[Logprob]
    def __init__(self, sampled: _Optional[_Union[Logprob, _Mapping]] = ..., top: _Optional[_Iterable[_Union[Logprob, _Mapping]]] = ...) -> None: ...

class Logprob(_message.Message):
    __slots__ = ("token_id", "logprob", "rank", "text", "token_bytes")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    rank: int
    text: str
    token_bytes: bytes
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., rank: _Optional[int] = ..., text: _Optional[str] = ..., token_bytes: _Optional[bytes] = ...) -> None: ...

class GenerationFinished(_message.Message):
    __slots__ = ("reason", "stop_string", "stop_token_id", "usage", "timings", "document_order", "restarts", "index")
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_STRING_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_ORDER_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    stop_string: str
    stop_token_id: int
    usage: Usage
    timings: Timings
    document_order: _containers.RepeatedScalarFieldContainer[int]
    restarts: int
    index: int
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., stop_string: _Optional[str] = ..., stop_token_id: _Optional[int] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., document_order: _Optional[_Iterable[int]] = ..., restarts: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "computed_tokens", "reused_tokens", "invalidated_tokens", "uncomputed_at_seal_tokens", "prefetched_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INVALIDATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    UNCOMPUTED_AT_SEAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFETCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    computed_tokens: int
    reused_tokens: int
    invalidated_tokens: int
    uncomputed_at_seal_tokens: int
    prefetched_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., reused_tokens: _Optional[int] = ..., invalidated_tokens: _Optional[int] = ..., uncomputed_at_seal_tokens: _Optional[int] = ..., prefetched_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("ttft_from_open", "ttft_from_seal", "first_to_second_token", "total")
    TTFT_FROM_OPEN_FIELD_NUMBER: _ClassVar[int]
    TTFT_FROM_SEAL_FIELD_NUMBER: _ClassVar[int]
    FIRST_TO_SECOND_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    ttft_from_open: _duration_pb2.Duration
    ttft_from_seal: _duration_pb2.Duration
    first_to_second_token: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, ttft_from_open: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttft_from_seal: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., first_to_second_token: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
