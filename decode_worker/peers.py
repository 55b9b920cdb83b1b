"""Prepares a decode worker to read KV from a prefill worker.

The first hand-over between two NIXL agents exchanges their metadata, which takes
far longer than reading the KV. So one tiny answer goes through each pair before
any session does, which also tests the whole path.
"""

from __future__ import annotations

from contextlib import aclosing

from decode_worker.engine import begin_decode, decode_steps
from decode_worker.handover_check import KnownEngines
from stream2llm.api.codec import fields
from stream2llm.api.errors import InternalError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.engine.vllm_engine import Engine
from stream2llm.security.tls import PeerChannels
from stream2llm.serving.mux.call import Call
from stream2llm.serving.mux.channel import MuxChannel
from stream2llm.serving.sessions.ids import unique_id
from stream2llm.serving.sessions.prefix import as_tokens
from stream2llm.serving.sessions.token_bytes import to_bytes
from stream2llm.serving.settings.worker_spec import WorkerAddress

_SAMPLING = SamplingParameters(max_tokens=2, temperature=0, ignore_eos=True)
_PROMPT_TOKEN_IDS = [1, 2, 3, 4]


async def connect(
    engine: Engine, known: KnownEngines, peer: WorkerAddress, channels: PeerChannels
) -> None:
    """Reads a few tokens' KV from `peer`, whose hand-overs are accepted from then on.

    Raises when that fails.
    """
    opened, _ = channels.open(peer.grpc_address)
    async with (
        opened as channel,
        # Prefill has freed what was read; leaving the block frees what it never handed over.
        aclosing(MuxChannel(channels.calls(channel), channels.max_message_bytes)) as calls,
    ):
        first = await _first_token(worker_pb2_grpc.PrefillServiceStub(calls).PrefillSession())
        transfer = known.learn(
            first.handover.kv_transfer_params_json,
            digest=first.handover.kv_digest,
            block_size=peer.block_size,
            num_kv_blocks=peer.num_kv_blocks,
        )
        request_id = unique_id("connect")
        tokens = [*_PROMPT_TOKEN_IDS, *first.step.token_ids]
        stream = await begin_decode(engine, request_id, tokens, _SAMPLING, transfer)
        async for _ in decode_steps(engine, request_id, stream, None):
            pass


async def _first_token(call: Call) -> worker_pb2.FirstToken:
    opening = worker_pb2.OpenPrefill(session_id="connect", sampling=fields(_SAMPLING))
    await call.write(worker_pb2.PrefillSessionRequest(open=opening))
    splice = worker_pb2.SplicePrefill(revision=1, token_ids=to_bytes(as_tokens(_PROMPT_TOKEN_IDS)))
    seal = worker_pb2.SealPrefill(splice=splice, hand_over=True)
    await call.write(worker_pb2.PrefillSessionRequest(seal=seal))
    async for response in call:
        if response.WhichOneof("event") == "first_token":
            first: worker_pb2.FirstToken = response.first_token
            return first
    raise InternalError("the prefill worker gave no first token")
