from stream2llm.api.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FetchEnd(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FETCH_END_UNSPECIFIED: _ClassVar[FetchEnd]
    FETCH_END_FETCHED: _ClassVar[FetchEnd]
    FETCH_END_REFUSED: _ClassVar[FetchEnd]
    FETCH_END_ABORTED: _ClassVar[FetchEnd]
    FETCH_END_FAILED: _ClassVar[FetchEnd]
FETCH_END_UNSPECIFIED: FetchEnd
FETCH_END_FETCHED: FetchEnd
FETCH_END_REFUSED: FetchEnd
FETCH_END_ABORTED: FetchEnd
FETCH_END_FAILED: FetchEnd

class ConnectRequest(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    def __init__(self, frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    def __init__(self, frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("call_id", "opening", "message", "piece", "half_close", "cancel", "initial_metadata", "end", "credit_bytes")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    HALF_CLOSE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    INITIAL_METADATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    opening: CallOpening
    message: bytes
    piece: bytes
    half_close: HalfClose
    cancel: CallCancel
    initial_metadata: CallMetadata
    end: CallEnd
    credit_bytes: int
    def __init__(self, call_id: _Optional[int] = ..., opening: _Optional[_Union[CallOpening, _Mapping]] = ..., message: _Optional[bytes] = ..., piece: _Optional[bytes] = ..., half_close: _Optional[_Union[HalfClose, _Mapping]] = ..., cancel: _Optional[_Union[CallCancel, _Mapping]] = ..., initial_metadata: _Optional[_Union[CallMetadata, _Mapping]] = ..., end: _Optional[_Union[CallEnd, _Mapping]] = ..., credit_bytes: _Optional[int] = ...) -> None: ...

class CallOpening(_message.Message):
    __slots__ = ("method", "metadata")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    method: str
    metadata: _containers.RepeatedCompositeFieldContainer[MetadataEntry]
    def __init__(self, method: _Optional[str] = ..., metadata: _Optional[_Iterable[_Union[MetadataEntry, _Mapping]]] = ...) -> None: ...

class HalfClose(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CallCancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CallMetadata(_message.Message):
    __slots__ = ("metadata",)
    METADATA_FIELD_NUMBER: _ClassVar[int]
    metadata: _containers.RepeatedCompositeFieldContainer[MetadataEntry]
    def __init__(self, metadata: _Optional[_Iterable[_Union[MetadataEntry, _Mapping]]] = ...) -> None: ...

class CallEnd(_message.Message):
    __slots__ = ("code", "details", "trailing_metadata")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    TRAILING_METADATA_FIELD_NUMBER: _ClassVar[int]
    code: int
    details: str
    trailing_metadata: _containers.RepeatedCompositeFieldContainer[MetadataEntry]
    def __init__(self, code: _Optional[int] = ..., details: _Optional[str] = ..., trailing_metadata: _Optional[_Iterable[_Union[MetadataEntry, _Mapping]]] = ...) -> None: ...

class MetadataEntry(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: bytes
    def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class PrefillSessionRequest(_message.Message):
    __slots__ = ("open", "splice", "seal")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SPLICE_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    open: OpenPrefill
    splice: SplicePrefill
    seal: SealPrefill
    def __init__(self, open: _Optional[_Union[OpenPrefill, _Mapping]] = ..., splice: _Optional[_Union[SplicePrefill, _Mapping]] = ..., seal: _Optional[_Union[SealPrefill, _Mapping]] = ...) -> None: ...

class OpenPrefill(_message.Message):
    __slots__ = ("session_id", "sampling", "cache_salt", "ttft_slo_ms", "tenant")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    TTFT_SLO_MS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    sampling: _inference_pb2.SamplingParameters
    cache_salt: str
    ttft_slo_ms: int
    tenant: Tenant
    def __init__(self, session_id: _Optional[str] = ..., sampling: _Optional[_Union[_inference_pb2.SamplingParameters, _Mapping]] = ..., cache_salt: _Optional[str] = ..., ttft_slo_ms: _Optional[int] = ..., tenant: _Optional[_Union[Tenant, _Mapping]] = ...) -> None: ...

class Tenant(_message.Message):
    __slots__ = ("name", "weight", "priority")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight: float
    priority: int
    def __init__(self, name: _Optional[str] = ..., weight: _Optional[float] = ..., priority: _Optional[int] = ...) -> None: ...

class SplicePrefill(_message.Message):
    __slots__ = ("revision", "keep_tokens", "token_ids", "stable_tokens")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    KEEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    STABLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    keep_tokens: int
    token_ids: bytes
    stable_tokens: int
    def __init__(self, revision: _Optional[int] = ..., keep_tokens: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., stable_tokens: _Optional[int] = ...) -> None: ...

class SealPrefill(_message.Message):
    __slots__ = ("splice", "hand_over", "ttft_left_ms", "answer_tokens", "answer_max_tokens")
    SPLICE_FIELD_NUMBER: _ClassVar[int]
    HAND_OVER_FIELD_NUMBER: _ClassVar[int]
    TTFT_LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    splice: SplicePrefill
    hand_over: bool
    ttft_left_ms: int
    answer_tokens: int
    answer_max_tokens: int
    def __init__(self, splice: _Optional[_Union[SplicePrefill, _Mapping]] = ..., hand_over: bool = ..., ttft_left_ms: _Optional[int] = ..., answer_tokens: _Optional[int] = ..., answer_max_tokens: _Optional[int] = ...) -> None: ...

class PrefillSessionResponse(_message.Message):
    __slots__ = ("progress", "first_token", "offer", "step")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    progress: PrefillProgress
    first_token: FirstToken
    offer: HandoverOffer
    step: TokenStep
    def __init__(self, progress: _Optional[_Union[PrefillProgress, _Mapping]] = ..., first_token: _Optional[_Union[FirstToken, _Mapping]] = ..., offer: _Optional[_Union[HandoverOffer, _Mapping]] = ..., step: _Optional[_Union[TokenStep, _Mapping]] = ...) -> None: ...

class PrefillProgress(_message.Message):
    __slots__ = ("revision", "known_tokens", "prefilled_tokens", "computed_tokens", "reused_tokens", "invalidated_tokens", "recomputed_tokens", "delay")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    KNOWN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INVALIDATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    revision: int
    known_tokens: int
    prefilled_tokens: int
    computed_tokens: int
    reused_tokens: int
    invalidated_tokens: int
    recomputed_tokens: int
    delay: _inference_pb2.DelayReason
    def __init__(self, revision: _Optional[int] = ..., known_tokens: _Optional[int] = ..., prefilled_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., reused_tokens: _Optional[int] = ..., invalidated_tokens: _Optional[int] = ..., recomputed_tokens: _Optional[int] = ..., delay: _Optional[_Union[_inference_pb2.DelayReason, str]] = ...) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ("step", "handover", "progress", "uncomputed_at_seal_tokens")
    STEP_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    UNCOMPUTED_AT_SEAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    step: TokenStep
    handover: Handover
    progress: PrefillProgress
    uncomputed_at_seal_tokens: int
    def __init__(self, step: _Optional[_Union[TokenStep, _Mapping]] = ..., handover: _Optional[_Union[Handover, _Mapping]] = ..., progress: _Optional[_Union[PrefillProgress, _Mapping]] = ..., uncomputed_at_seal_tokens: _Optional[int] = ...) -> None: ...

class Handover(_message.Message):
    __slots__ = ("kv_transfer_params_json", "num_blocks", "kv_digest")
    KV_TRANSFER_PARAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    KV_DIGEST_FIELD_NUMBER: _ClassVar[int]
    kv_transfer_params_json: str
    num_blocks: int
    kv_digest: bytes
    def __init__(self, kv_transfer_params_json: _Optional[str] = ..., num_blocks: _Optional[int] = ..., kv_digest: _Optional[bytes] = ...) -> None: ...

class HandoverOffer(_message.Message):
    __slots__ = ("revision", "num_tokens", "handover")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    revision: int
    num_tokens: int
    handover: Handover
    def __init__(self, revision: _Optional[int] = ..., num_tokens: _Optional[int] = ..., handover: _Optional[_Union[Handover, _Mapping]] = ...) -> None: ...

class TokenStep(_message.Message):
    __slots__ = ("token_ids", "logprobs", "finish_reason", "stop_token_id")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_inference_pb2.TokenLogprobs]
    finish_reason: _inference_pb2.FinishReason
    stop_token_id: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_inference_pb2.TokenLogprobs, _Mapping]]] = ..., finish_reason: _Optional[_Union[_inference_pb2.FinishReason, str]] = ..., stop_token_id: _Optional[int] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("session_id", "token_ids", "sampling", "handover", "fetch_session_id", "refuse_when_full", "cache_salt", "answer_tokens", "keep_tokens", "num_fetches", "tenant")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    FETCH_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REFUSE_WHEN_FULL_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_FETCHES_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    token_ids: bytes
    sampling: _inference_pb2.SamplingParameters
    handover: Handover
    fetch_session_id: str
    refuse_when_full: bool
    cache_salt: str
    answer_tokens: int
    keep_tokens: int
    num_fetches: int
    tenant: Tenant
    def __init__(self, session_id: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., sampling: _Optional[_Union[_inference_pb2.SamplingParameters, _Mapping]] = ..., handover: _Optional[_Union[Handover, _Mapping]] = ..., fetch_session_id: _Optional[str] = ..., refuse_when_full: bool = ..., cache_salt: _Optional[str] = ..., answer_tokens: _Optional[int] = ..., keep_tokens: _Optional[int] = ..., num_fetches: _Optional[int] = ..., tenant: _Optional[_Union[Tenant, _Mapping]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("step", "local_tokens")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOCAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    step: TokenStep
    local_tokens: int
    def __init__(self, step: _Optional[_Union[TokenStep, _Mapping]] = ..., local_tokens: _Optional[int] = ...) -> None: ...

class PrefetchKvRequest(_message.Message):
    __slots__ = ("open", "fetch", "abort")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    open: OpenPrefetch
    fetch: FetchKv
    abort: AbortFetch
    def __init__(self, open: _Optional[_Union[OpenPrefetch, _Mapping]] = ..., fetch: _Optional[_Union[FetchKv, _Mapping]] = ..., abort: _Optional[_Union[AbortFetch, _Mapping]] = ...) -> None: ...

class OpenPrefetch(_message.Message):
    __slots__ = ("fetch_session_id", "cache_salt", "structured_output")
    FETCH_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    fetch_session_id: str
    cache_salt: str
    structured_output: _inference_pb2.StructuredOutput
    def __init__(self, fetch_session_id: _Optional[str] = ..., cache_salt: _Optional[str] = ..., structured_output: _Optional[_Union[_inference_pb2.StructuredOutput, _Mapping]] = ...) -> None: ...

class FetchKv(_message.Message):
    __slots__ = ("keep_tokens", "token_ids", "handover")
    KEEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    keep_tokens: int
    token_ids: bytes
    handover: Handover
    def __init__(self, keep_tokens: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., handover: _Optional[_Union[Handover, _Mapping]] = ...) -> None: ...

class AbortFetch(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PrefetchKvResponse(_message.Message):
    __slots__ = ("end", "reason", "num_blocks")
    END_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    end: FetchEnd
    reason: str
    num_blocks: int
    def __init__(self, end: _Optional[_Union[FetchEnd, str]] = ..., reason: _Optional[str] = ..., num_blocks: _Optional[int] = ...) -> None: ...

class ReleaseHandoverRequest(_message.Message):
    __slots__ = ("session_id", "handover")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    handover: Handover
    def __init__(self, session_id: _Optional[str] = ..., handover: _Optional[_Union[Handover, _Mapping]] = ...) -> None: ...

class ReleaseHandoverResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetWorkerStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetWorkerStatusResponse(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: _inference_pb2.WorkerInfo
    def __init__(self, worker: _Optional[_Union[_inference_pb2.WorkerInfo, _Mapping]] = ...) -> None: ...

class WatchCacheRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchCacheResponse(_message.Message):
    __slots__ = ("sequence", "begin", "removed", "added")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    begin: CacheBegin
    removed: bytes
    added: bytes
    def __init__(self, sequence: _Optional[int] = ..., begin: _Optional[_Union[CacheBegin, _Mapping]] = ..., removed: _Optional[bytes] = ..., added: _Optional[bytes] = ...) -> None: ...

class CacheBegin(_message.Message):
    __slots__ = ("block_size", "hash_root")
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    HASH_ROOT_FIELD_NUMBER: _ClassVar[int]
    block_size: int
    hash_root: bytes
    def __init__(self, block_size: _Optional[int] = ..., hash_root: _Optional[bytes] = ...) -> None: ...
