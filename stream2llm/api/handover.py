"""How a session's KV cache reaches its decode worker: the words that all parts share.

`at_seal`: decode pulls everything after the first token. `streamed`: prefill
offers full blocks while the context still comes in, decode fetches them ahead,
and after the first token only what is left is pulled.
"""

from __future__ import annotations

from typing import Literal, get_args

HandoverMode = Literal["at_seal", "streamed"]
HANDOVER_MODES: tuple[HandoverMode, ...] = get_args(HandoverMode)

# Key of our part in SamplingParams.extra_args and in an output's
# kv_transfer_params, wherever the hand-over is meant.
HANDOVER_KEY = "stream2llm_handover"
# In the initial metadata of a Decode RPC: the worker reads the hand-over, or tells prefill that
# it will not. An RPC that ends without it has not touched the hand-over.
ACCEPTED_KEY = "stream2llm-handover-accepted"
ACCEPTED_METADATA = ((ACCEPTED_KEY, "1"),)
# The reason with which decode refuses an answer whose prompt it does not know: the RPC of its
# fetches has ended, or had others. Its router sends the whole prompt.
NO_FETCHED_TOKENS = "NO_FETCHED_TOKENS"
# In the initial metadata of a PrefillSession RPC, which is sent before the engine gets anything:
# a worker that is lost without it was gone already, and did not die of the session.
HELD_KEY = "stream2llm-session-held"
HELD_METADATA = ((HELD_KEY, "1"),)
